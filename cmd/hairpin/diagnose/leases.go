// SPDX-License-Identifier: Apache-2.0

package diagnose

import "fmt"

// leases looks at the lease files, and at mappings that become no forwards.
func leases(f *Facts) (list []Finding) {
	if f.Datapath == nil || f.Datapath.Leases == nil {
		return nil
	}
	l := f.Datapath.Leases
	for _, file := range l.Files {
		switch {
		case file.Unseen:
			list = append(list, Finding{Level: Unknown, Code: "lease-file-unseen", Text: file.Path + " was not looked at: this user may not read it"})
		case file.Err != nil:
			list = append(list, Finding{Level: Problem, Code: "lease-file", Text: fmt.Sprintf("the daemon does not follow %s: %s", file.Path, file.Err)})
		case file.Missing:
			list = append(list, Finding{Level: Warning, Code: "lease-file-missing", Text: file.Path + " does not exist"}.
				advise("set lease_file in miniupnpd.conf to this path; miniupnpd makes the file with the first mapping"))
		case file.Bad > 0:
			list = append(list, Finding{Level: Warning, Code: "lease-lines", Text: fmt.Sprintf("%s of %s cannot be read; the first is %s", count(file.Bad, "line"), file.Path, file.First)})
		}
	}
	if !f.Datapath.Daemon && f.Datapath.Stopped == nil {
		list = append(list, Finding{Level: Warning, Code: "lease-daemon", Text: "the daemon does not run, so nothing follows the lease files; the mappings of before stay"}.
			run("systemctl start hairpin"))
	}
	for _, r := range l.Refused {
		list = append(list, Finding{Level: Warning, Code: "lease-refused", Text: fmt.Sprintf("the mapping %s is not reflected: %s", r.Name, r.Text)})
	}
	return orOK(list, count(l.Running, "mapping")+" of lease files are forwards for LAN clients")
}
