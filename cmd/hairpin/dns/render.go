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
	// mark begins the first line of every file, after the comment sign.
	mark = "Written by hairpin dns"
	// ttl is the TTL of records in seconds. It is short, because forwards change.
	ttl = 60
	// zone is the name of the response policy zone in BIND.
	zone = "hairpin.rpz"
	// zoneFile is the zone's file if no path is configured; BIND looks for it in its working directory.
	zoneFile = zone
	// maxName is the largest length of a name, including the zone's name.
	maxName = 253
)

// File describes a DNS file without its names.
type File struct {
	Format config.DNSFormat
	Serial uint32 // of the zone; only for bind-rpz
	Zone   string // path of the bind-rpz file, "" for BIND's working directory; only for bind-view
}

// Render returns the content of a file. Equal names give equal content.
func (f File) Render(names []Name) []byte {
	var out bytes.Buffer
	comment := "#"
	switch f.Format {
	case config.DNSBindRPZ:
		comment = ";"
	case config.DNSBindView:
		comment = "//"
	}
	fmt.Fprintf(&out, "%s %s as %s. Do not edit: it is replaced. Change the forwards instead.\n", comment, mark, f.Format)
	switch f.Format {
	case config.DNSHosts:
		hosts(&out, names)
		out.WriteString("# End of hairpin dns\n") // so that the lines can be cut out of /etc/hosts again
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

// update renders a file that replaces previous; previous is nil if there is no file. If the names did not
// change, update returns previous. Otherwise the serial of a zone rises. The new serial is the time in
// seconds if that is higher, so that it also rises if a file was lost.
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
	// RFC 1982: a serial is higher if it is ahead by less than half of the number space.
	if int32(f.Serial-before) <= 0 {
		f.Serial = before + 1
	}
	return f.Render(names)
}

// isOurs reports whether this package wrote the file.
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

// unbound changes only A and AAAA records. Other types of a name, and names below it, stay as on the
// Internet.
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
	out.WriteString("; Names are relative to the zone's name. For a name in this file BIND answers other record\n" +
		"; types with no data. Names below it keep their public answers.\n")
	fmt.Fprintf(out, "$TTL %d\n", ttl)
	fmt.Fprintf(out, "%s%d 3600 600 86400 %d\n", startOfAuthority, serial, ttl)
	out.WriteString("@ IN NS localhost.\n")
	for _, name := range names {
		for _, addr := range name.Addresses {
			out.WriteString(name.Host + " IN " + recordType(addr) + " " + addr.String() + "\n")
		}
	}
}

// serial reads the serial number of a zone that responsePolicy wrote.
func serial(file []byte) (uint32, bool) {
	_, rest, ok := bytes.Cut(file, []byte("\n"+startOfAuthority))
	if !ok {
		return 0, false
	}
	number, _, _ := bytes.Cut(rest, []byte(" "))
	value, err := strconv.ParseUint(string(number), 10, 32)
	return uint32(value), err == nil
}

// view only names the zone's file, because BIND reads records from zone files only.
func view(out *bytes.Buffer, file string) {
	if file == "" {
		file = zoneFile
	}
	fmt.Fprintf(out, `// The names are in the zone's file: hairpin dns --format bind-rpz. With views, every zone must
// be in a view. Put this view before the view for other clients: "match-clients { any; };".
view "inside" {
	// Not "localhost", which includes the public address: queries that this server sends to
	// itself at the public address belong to the view for other clients.
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

// fits returns the error for a host that cannot be in a file of this format.
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
