// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"time"

	"hairpin/maps/rule"
)

// codec writes forwards as bytes or reads them back: the document holds up to
// 65,536, and whoever adds one waits for all of them to be looked at. One function
// for each type goes both ways, so what is written is what is read.
type codec struct {
	out  []byte // written so far; nil while reading
	text string // yet to be read; strings are read without a copy
	err  error
}

var errCutShort = errors.New("the forwards are cut short")

// encodeForwards appends the form that decodeForwards reads. Every forward has an epoch reference.
func encodeForwards(to []byte, forwards []rule.Forward, epochRefs []EpochRef) []byte {
	room := 16
	for i := range forwards {
		room += 48 + len(forwards[i].Name) + len(forwards[i].Source)
	}
	c := codec{out: slices.Grow(to, room)}
	count := uint64(len(forwards))
	c.number(&count)
	for i := range forwards {
		f := forwards[i]
		c.forward(&f)
		c.epochRef(&epochRefs[i])
	}
	return c.out
}

// decodeForwards returns what is behind them as well.
func decodeForwards(text string) (forwards []rule.Forward, epochRefs []EpochRef, rest string, err error) {
	c := codec{text: text}
	count := c.count()
	// With room for additions: they are not to copy all that was there.
	forwards = make([]rule.Forward, count, count+AdditionsRoom)
	epochRefs = make([]EpochRef, count, count+AdditionsRoom)
	for i := range forwards {
		c.forward(&forwards[i])
		c.epochRef(&epochRefs[i])
	}
	return forwards, epochRefs, c.text, c.err
}

// countForwards is how many encodeForwards wrote.
func countForwards(text string) int {
	c := codec{text: text}
	return c.count()
}

// eachForward calls visit for forwards as encodeForwards wrote them until it
// returns false. It makes no memory of them: what visit is given, lists included,
// is the next one's afterwards. It returns what is behind them as well, if it visits them all.
func eachForward(text string, visit func(*rule.Forward, EpochRef) bool) (rest string, err error) {
	c := codec{text: text}
	var (
		f rule.Forward
		s EpochRef
	)
	for range c.count() {
		c.forward(&f)
		c.epochRef(&s)
		if c.err != nil || !visit(&f, s) {
			break
		}
	}
	return c.text, c.err
}

// encodeString is how a text lies among the forwards.
func encodeString(text string) string {
	c := codec{out: []byte{}}
	c.string(&text)
	return string(c.out)
}

// encodeEpochRefs appends the form that decodeEpochRefs reads.
func encodeEpochRefs(to []byte, epochRefs []EpochRef) []byte {
	c := codec{out: slices.Grow(to, 16)}
	items(&c, &epochRefs, (*codec).epochRef)
	return c.out
}

func decodeEpochRefs(text string) ([]EpochRef, error) {
	c := codec{text: text}
	var epochRefs []EpochRef
	items(&c, &epochRefs, (*codec).epochRef)
	return epochRefs, c.err
}

// Forward has what most forwards do without only if its bit is set.
func (c *codec) forward(f *rule.Forward) {
	has := c.bits(f.TargetPort != 0, f.Source != "", f.External.Interface != "", f.External.Address.IsValid(),
		len(f.From) > 0, f.Reflect != "", len(f.Hosts) > 0, f.Intercept, len(f.LAN) > 0, len(f.Except) > 0,
		!f.Rate.IsZero(), !f.RatePerSource.IsZero())
	c.string(&f.Name)
	items(c, &f.Protocols, (*codec).protocol)
	c.port(&f.Ports.First)
	c.port(&f.Ports.Last)
	c.addr(&f.Target)
	optional(c, has&1, &f.TargetPort, (*codec).port)
	optional(c, has&2, &f.Source, (*codec).string)
	optional(c, has&4, &f.External.Interface, (*codec).string)
	optional(c, has&8, &f.External.Address, (*codec).addr)
	list(c, has&16, &f.From, (*codec).prefix)
	optional(c, has&32, (*string)(&f.Reflect), (*codec).string)
	list(c, has&64, &f.Hosts, (*codec).string)
	f.Intercept = has&128 != 0
	list(c, has&256, &f.LAN, (*codec).string)
	list(c, has&512, &f.Except, (*codec).prefix)
	optional(c, has&1024, &f.Rate, (*codec).rate)
	optional(c, has&2048, &f.RatePerSource, (*codec).rate)
}

// bits goes through what is true, the first as the lowest bit.
func (c *codec) bits(list ...bool) uint64 {
	var set uint64
	if c.out != nil {
		for i, is := range list {
			if is {
				set |= 1 << i
			}
		}
	}
	c.number(&set)
	return set
}

// optional goes through a field if it is there; else it is read as zero.
func optional[T any](c *codec, there uint64, field *T, do func(*codec, *T)) {
	var zero T
	switch {
	case there != 0:
		do(c, field)
	case c.out == nil:
		*field = zero
	}
}

// list is optional for a list, and reads it into the one that was there.
func list[T any](c *codec, there uint64, field *[]T, item func(*codec, *T)) {
	switch {
	case there != 0:
		items(c, field, item)
	case c.out == nil:
		*field = (*field)[:0]
	}
}

func (c *codec) epochRef(s *EpochRef) {
	c.word(&s.ID)
	c.word(&s.Epoch)
}

// items goes through a list. It is read into the one that was there, if that is
// long enough; an empty one is read as nil if there was none.
func items[T any](c *codec, list *[]T, item func(*codec, *T)) {
	if c.out == nil {
		count := c.count()
		if count > cap(*list) {
			*list = make([]T, count)
		}
		*list = (*list)[:count]
	} else {
		count := uint64(len(*list))
		c.number(&count)
	}
	for i := range *list {
		item(c, &(*list)[i])
	}
}

// count reads how many items follow, each of a byte at least.
func (c *codec) count() int {
	var count uint64
	c.number(&count)
	if count > uint64(len(c.text)) {
		c.cutShort()
		return 0
	}
	return int(count)
}

func (c *codec) number(n *uint64) {
	if c.out != nil {
		c.out = binary.AppendUvarint(c.out, *n)
		return
	}
	var value uint64
	for i := 0; i < min(len(c.text), binary.MaxVarintLen64); i++ {
		b := c.text[i]
		value |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			*n, c.text = value, c.text[i+1:]
			return
		}
	}
	*n = 0
	c.cutShort()
}

func (c *codec) word(n *uint32) {
	wide := uint64(*n)
	c.number(&wide)
	*n = uint32(wide)
}

func (c *codec) port(n *uint16) {
	wide := uint64(*n)
	c.number(&wide)
	*n = uint16(wide)
}

func (c *codec) protocol(p *rule.Protocol) {
	wide := uint64(*p)
	c.number(&wide)
	*p = rule.Protocol(wide)
}

func (c *codec) string(s *string) {
	length := uint64(len(*s))
	c.number(&length)
	if c.out != nil {
		c.out = append(c.out, *s...)
		return
	}
	if length > uint64(len(c.text)) {
		c.cutShort()
		return
	}
	*s, c.text = c.text[:length], c.text[length:]
}

func (c *codec) rate(r *rule.Rate) {
	seconds := uint64(r.Per / time.Second)
	c.word(&r.Count)
	c.number(&seconds)
	r.Per = time.Duration(seconds) * time.Second
}

// addr writes 0, 4 or 16 bytes and their count.
func (c *codec) addr(a *netip.Addr) {
	text := ""
	if c.out != nil {
		bytes := a.AsSlice()
		c.out = append(c.out, byte(len(bytes)))
		c.out = append(c.out, bytes...)
		return
	}
	c.string(&text)
	switch len(text) {
	case 4:
		*a = netip.AddrFrom4([4]byte([]byte(text)))
	case 16:
		*a = netip.AddrFrom16([16]byte([]byte(text)))
	default:
		*a = netip.Addr{}
	}
}

func (c *codec) prefix(p *netip.Prefix) {
	addr, bits := p.Addr(), uint64(max(0, p.Bits()))
	c.addr(&addr)
	c.number(&bits)
	*p = netip.PrefixFrom(addr, int(bits))
}

// cutShort ends the reading.
func (c *codec) cutShort() {
	c.err, c.text = errCutShort, ""
}
