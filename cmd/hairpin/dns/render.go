// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"hairpin/maps/config"
)

const (
	// mark begins every file, after the sign of a comment.
	mark = "Written by hairpin dns"
	// ttl is how many seconds a client may keep an answer: a forward may change.
	ttl = 60
	// zone is the name that BIND is told for the response policy zone.
	zone = "hairpin.rpz"
	// zoneFile is where the view looks for its zone if no path is known:
	// in the directory that BIND runs in.
	zoneFile = zone
	// maxName is how many characters a name may have, the zone's included.
	maxName = 253
)

// File is what a file holds besides its names.
type File struct {
	Format config.DNSFormat
	Serial uint32 // bind-rpz: of the zone
	Zone   string // bind-view: the path of the file of bind-rpz, "" for one in BIND's own directory
}

// Render is the content of a file. The same names give the same file.
func (f File) Render(names []Name) []byte {
	var out bytes.Buffer
	comment := "#"
	switch f.Format {
	case config.DNSBindRPZ:
		comment = ";"
	case config.DNSBindView:
		comment = "//"
	}
	fmt.Fprintf(&out, "%s %s as %s. It is replaced as a whole: change the forwards.\n", comment, mark, f.Format)
	switch f.Format {
	case config.DNSHosts:
		hosts(&out, names)
		out.WriteString("# End of hairpin dns\n") // so that it can be cut out of /etc/hosts again
	case config.DNSDnsmasq:
		hosts(&out, names)
	case config.DNSUnbound:
		unbound(&out, names)
	case config.DNSBindRPZ:
		responsePolicy(&out, names, f.Serial)
	case config.DNSBindView:
		view(&out, f.Zone)
	}
	return out.Bytes()
}

// update renders a file that comes after a previous one, nil if there is none.
// With the same names it is the previous one. Otherwise the serial of a zone
// rises: to the time in seconds, as long as that is higher, so that it also
// rises over a file that was lost.
func (f File) update(previous []byte, names []Name, now time.Time) []byte {
	f.Serial = uint32(now.Unix())
	if f.Format != config.DNSBindRPZ {
		return f.Render(names)
	}
	before, ok := serial(previous)
	if !ok {
		return f.Render(names)
	}
	same := f
	same.Serial = before
	if file := same.Render(names); bytes.Equal(file, previous) {
		return file
	}
	// RFC 1982: later is less than half the circle ahead.
	if int32(f.Serial-before) <= 0 {
		f.Serial = before + 1
	}
	return f.Render(names)
}

// isOurs reports whether a file was written by this package.
func isOurs(file []byte) bool {
	line, _, _ := bytes.Cut(file, []byte("\n"))
	return bytes.HasPrefix(bytes.TrimLeft(line, "#;/ "), []byte(mark+" as "))
}

func hosts(out *bytes.Buffer, names []Name) {
	for _, name := range names {
		for _, addr := range name.Addresses {
			out.WriteString(addr.String() + " " + name.Host + "\n")
		}
	}
}

// unbound leaves other types of a name, and all below it, as they are outside.
func unbound(out *bytes.Buffer, names []Name) {
	out.WriteString("server:\n")
	for _, name := range names {
		out.WriteString("\tlocal-zone: \"" + name.Host + ".\" typetransparent\n")
		for _, addr := range name.Addresses {
			out.WriteString("\tlocal-data: \"" + name.Host + ". " + strconv.Itoa(ttl) + " IN " + recordType(addr) + " " + addr.String() + "\"\n")
		}
	}
}

const startOfAuthority = "@ IN SOA localhost. hostmaster.localhost. "

func responsePolicy(out *bytes.Buffer, names []Name, serial uint32) {
	out.WriteString("; Names are below the zone's, whatever that is called. BIND answers other types of a\n" +
		"; name that is here with nothing; names below it are as they are outside.\n")
	fmt.Fprintf(out, "$TTL %d\n", ttl)
	fmt.Fprintf(out, "%s%d 3600 600 86400 %d\n", startOfAuthority, serial, ttl)
	out.WriteString("@ IN NS localhost.\n")
	for _, name := range names {
		for _, addr := range name.Addresses {
			out.WriteString(name.Host + " IN " + recordType(addr) + " " + addr.String() + "\n")
		}
	}
}

// serial reads that of a zone that responsePolicy wrote.
func serial(file []byte) (uint32, bool) {
	_, rest, ok := bytes.Cut(file, []byte("\n"+startOfAuthority))
	if !ok {
		return 0, false
	}
	number, _, _ := bytes.Cut(rest, []byte(" "))
	value, err := strconv.ParseUint(string(number), 10, 32)
	return uint32(value), err == nil
}

// view has no names itself: BIND reads records from zone files only.
func view(out *bytes.Buffer, file string) {
	if file == "" {
		file = zoneFile
	}
	fmt.Fprintf(out, `// The names are in the zone's file: hairpin dns --format bind-rpz. With views every zone
// is in one: put this before the view of the others, which has "match-clients { any; };".
view "inside" {
	// Not "localhost", which is the public address as well: what the server asks itself there
	// is for the view of the others.
	match-clients { 127.0.0.0/8; ::1; 10.0.0.0/8; 172.16.0.0/12; 192.168.0.0/16; fc00::/7; };
	recursion yes;
	allow-recursion { any; };
	allow-query-cache { any; };

	response-policy {
		zone "%[1]s" min-update-interval 0;
	} qname-wait-recurse no recursive-only no break-dnssec yes;

	zone "%[1]s" {
		type primary;
		file "%[2]s";
		allow-query { none; };
		allow-transfer { none; };
	};
};
`, zone, file)
}

func recordType(addr netip.Addr) string {
	if addr.Is6() {
		return "AAAA"
	}
	return "A"
}

// fits says why a host cannot be in a file of a format.
func fits(format config.DNSFormat, host string) error {
	if format != config.DNSBindRPZ {
		return nil
	}
	if most := maxName - len("."+zone); len(host) > most {
		return fmt.Errorf("a name in a response policy zone has at most %d characters", most)
	}
	if last := host[strings.LastIndexByte(host, '.')+1:]; strings.HasPrefix(last, "rpz-") {
		return errors.New("labels that begin with rpz- have another meaning in a response policy zone")
	}
	return nil
}
