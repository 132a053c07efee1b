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

// codec encodes or decodes forwards. A document can have 65,536 forwards, and `forward add` reads all of them, so the
// form must be fast. One function for each type both writes and reads, so the two directions cannot differ.
type codec struct {
	out  []byte // while encoding: the bytes so far; nil while decoding
	text string // while decoding: the rest of the text; decoded strings share its memory
	err  error
}

var errCutShort = errors.New("the encoded forwards are truncated")

// encodeForwards appends the forwards, each with its epoch reference, for decodeForwards.
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

// decodeForwards decodes the text of encodeForwards. rest is the text after the forwards.
func decodeForwards(text string) (forwards []rule.Forward, epochRefs []EpochRef, rest string, err error) {
	c := codec{text: text}
	count := c.count()
	// Capacity for additions: to append them must not copy all forwards.
	forwards = make([]rule.Forward, count, count+AdditionsRoom)
	epochRefs = make([]EpochRef, count, count+AdditionsRoom)
	for i := range forwards {
		c.forward(&forwards[i])
		c.epochRef(&epochRefs[i])
	}
	return forwards, epochRefs, c.text, c.err
}

// countForwards returns the number of forwards in the text of encodeForwards.
func countForwards(text string) int {
	c := codec{text: text}
	return c.count()
}

// eachForward calls visit for each forward in the text of encodeForwards, until visit returns false. visit must not keep
// its argument or the lists in it: the next call reuses their memory. If visit never returns false, rest is the text
// after the forwards.
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

// encodeString returns the encoded form of a string, for a search in the text of encodeForwards.
func encodeString(text string) string {
	c := codec{out: []byte{}}
	c.string(&text)
	return string(c.out)
}

// encodeEpochRefs appends epoch references for decodeEpochRefs.
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

// forward encodes or decodes a forward. A field that most forwards do not use is in the text only if its bit is set.
func (c *codec) forward(f *rule.Forward) {
	has := c.bits(f.TargetPort != 0, f.Source != "", f.External.Interface != "", f.External.Address.IsValid(),
		len(f.From) > 0, f.Reflect != "", len(f.Hosts) > 0, f.Intercept, len(f.LAN) > 0, len(f.Except) > 0, f.Clients != "",
		!f.Rate.IsZero(), !f.RatePerSource.IsZero(), f.Comment != "", f.DrainUntil != 0, f.Disabled, f.LANOnly, f.Pool != nil)
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
	optional(c, has&1024, (*string)(&f.Clients), (*codec).string)
	optional(c, has&2048, &f.Rate, (*codec).rate)
	optional(c, has&4096, &f.RatePerSource, (*codec).rate)
	optional(c, has&8192, &f.Comment, (*codec).string)
	optional(c, has&16384, &f.DrainUntil, (*codec).duration)
	f.Disabled = has&32768 != 0
	f.LANOnly = has&65536 != 0
	optional(c, has&131072, &f.Pool, (*codec).pool)
}

// bits encodes or decodes flags as one number. The first flag is the lowest bit.
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

// optional encodes or decodes a field if there is not 0. Otherwise decoding sets the field to its zero value.
func optional[T any](c *codec, there uint64, field *T, do func(*codec, *T)) {
	var zero T
	switch {
	case there != 0:
		do(c, field)
	case c.out == nil:
		*field = zero
	}
}

// list is optional for a slice. Decoding reuses the memory of *field.
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

// items encodes or decodes the length and the items of a slice. Decoding reuses the memory of *list if its capacity is
// large enough. A nil slice stays nil if the text has no items.
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

// count decodes the number of items that follow. An item has at least one byte, so a larger number than the rest of the
// text is an error.
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

// pool encodes or decodes a pool. Decoding makes a new one.
func (c *codec) pool(p **rule.Pool) {
	if c.out == nil {
		*p = new(rule.Pool)
	}
	items(c, &(*p).Servers, (*codec).server)
	c.duration(&(*p).Affinity)
}

func (c *codec) server(s *rule.Server) {
	c.addr(&s.Target)
	c.port(&s.Port)
	c.port(&s.Weight)
	number := uint16(s.Number)
	c.port(&number)
	s.Number = uint8(number)
}

func (c *codec) rate(r *rule.Rate) {
	seconds := uint64(r.Per / time.Second)
	c.word(&r.Count)
	c.number(&seconds)
	r.Per = time.Duration(seconds) * time.Second
}

// duration encodes or decodes a duration.
func (c *codec) duration(d *time.Duration) {
	wide := uint64(*d)
	c.number(&wide)
	*d = time.Duration(wide)
}

// addr encodes or decodes an address: the number of bytes (0, 4 or 16), then the bytes.
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

// cutShort records an error and drops the rest of the text.
func (c *codec) cutShort() {
	c.err, c.text = errCutShort, ""
}
