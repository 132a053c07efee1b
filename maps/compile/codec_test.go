// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

// fill sets every field of a value to a value other than zero.
func fill(tb testing.TB, v reflect.Value, seed *int) {
	tb.Helper()
	*seed++
	switch at := v.Addr().Interface().(type) {
	case *netip.Addr:
		*at = netip.AddrFrom4([4]byte{10, 0, byte(*seed >> 8), byte(*seed)})
		if *seed%2 == 0 {
			*at = netip.AddrFrom16([16]byte{0x20, 1, 15: byte(*seed)})
		}
		return
	case *rule.Rate:
		*at = rule.Rate{Count: uint32(*seed), Per: time.Minute}
		return
	case *time.Duration:
		*at = time.Duration(*seed) * time.Hour
		return
	case *netip.Prefix:
		*at = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(*seed), 0, 0}), 16+*seed%8)
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d \x00é", *seed))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		v.SetUint(uint64(200 + *seed))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(tb, v.Index(i), seed)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(tb, v.Elem(), seed)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(tb, v.Field(i), seed)
		}
	default:
		tb.Fatalf("no value for a %s", v.Type())
	}
}

// TestEveryFieldOfAForwardIsWritten uses reflection, so it fails if codec does not encode a new field.
func TestEveryFieldOfAForwardIsWritten(t *testing.T) {
	seed := 0
	forwards, epochRefs := make([]rule.Forward, 3), []EpochRef{{1, 2}, {1 << 20, 1<<32 - 1}, {}}
	for i := range 2 { // the third forward stays empty
		fill(t, reflect.ValueOf(&forwards[i]).Elem(), &seed)
	}
	text := string(encodeForwards(nil, forwards, epochRefs))
	got, gotRefs, rest, err := decodeForwards(text + "rest")
	if err != nil || !reflect.DeepEqual(got, forwards) || !reflect.DeepEqual(gotRefs, epochRefs) || rest != "rest" {
		t.Errorf("wrote %+v %v\nread %+v %v %q, %v", forwards, epochRefs, got, gotRefs, rest, err)
	}
	for length := range text {
		if _, _, _, err := decodeForwards(text[:length]); !errors.Is(err, errCutShort) {
			t.Fatalf("%d of %d bytes read without an error (%v)", length, len(text), err)
		}
	}
}

// TestAnyFieldOfAForwardIsWritten: codec encodes each field also if all other fields are zero.
func TestAnyFieldOfAForwardIsWritten(t *testing.T) {
	seed := 0
	var forwards []rule.Forward
	for i := range reflect.TypeFor[rule.Forward]().NumField() {
		f := new(rule.Forward)
		fill(t, reflect.ValueOf(f).Elem().Field(i), &seed)
		forwards = append(forwards, *f)
	}
	got, _, _, err := decodeForwards(string(encodeForwards(nil, forwards, make([]EpochRef, len(forwards)))))
	if err != nil || !reflect.DeepEqual(got, forwards) {
		t.Errorf("wrote %+v\nread %+v, %v", forwards, got, err)
	}
}

// TestEachForwardShowsThemOneByOne: no field of a forward remains in the next forward.
func TestEachForwardShowsThemOneByOne(t *testing.T) {
	seed := 0
	forwards, epochRefs := make([]rule.Forward, 5), []EpochRef{{1, 2}, {}, {3, 4}, {5, 6}, {7, 8}}
	for _, i := range []int{0, 2, 4} { // forwards 1 and 3 stay empty
		fill(t, reflect.ValueOf(&forwards[i]).Elem(), &seed)
	}
	forwards[2].From = forwards[2].From[:1]
	text := string(encodeForwards(nil, forwards, epochRefs))
	if count := countForwards(text); count != len(forwards) {
		t.Errorf("%d counted, want %d", count, len(forwards))
	}
	at := 0
	_, err := eachForward(text, func(f *rule.Forward, s EpochRef) bool {
		if !cmp.Equal(*f, forwards[at], mapstest.NetipValues, cmpopts.EquateEmpty()) || s != epochRefs[at] {
			t.Errorf("%d: read %+v %v, want %+v %v", at, *f, s, forwards[at], epochRefs[at])
		}
		at++
		return at < 4
	})
	if err != nil || at != 4 {
		t.Errorf("%d shown, want 4, %v", at, err)
	}
	for length := range text {
		_, err := eachForward(text[:length], func(*rule.Forward, EpochRef) bool { return true })
		if !errors.Is(err, errCutShort) {
			t.Fatalf("%d of %d bytes read without an error (%v)", length, len(text), err)
		}
	}
}

func TestStampsAreWritten(t *testing.T) {
	for _, epochRefs := range [][]EpochRef{nil, {{1, 2}}, {{1 << 20, 1<<32 - 1}, {}, {3, 4}}} {
		text := string(encodeEpochRefs(nil, epochRefs))
		if got, err := decodeEpochRefs(text); err != nil || !reflect.DeepEqual(got, epochRefs) {
			t.Errorf("wrote %v, read %v, %v", epochRefs, got, err)
		}
		for length := range text {
			if _, err := decodeEpochRefs(text[:length]); !errors.Is(err, errCutShort) {
				t.Errorf("%d of %d bytes read without an error (%v)", length, len(text), err)
			}
		}
	}
}

func BenchmarkDecodeForwards(b *testing.B) {
	c := mapstest.ManyForwards(65000)
	text := string(encodeForwards(nil, c.Forwards, make([]EpochRef, len(c.Forwards))))
	b.ReportMetric(float64(len(text)), "bytes")
	for b.Loop() {
		if _, _, _, err := decodeForwards(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEachForward(b *testing.B) {
	c := mapstest.ManyForwards(65000)
	text := string(encodeForwards(nil, c.Forwards, make([]EpochRef, len(c.Forwards))))
	for b.Loop() {
		if _, err := eachForward(text, func(*rule.Forward, EpochRef) bool { return true }); err != nil {
			b.Fatal(err)
		}
	}
}
