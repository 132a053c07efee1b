// SPDX-License-Identifier: Apache-2.0

package rule_test

import (
	"testing"

	"hairpin/maps/rule"
)

// CheckInterfaceName accepts names that dev_valid_name() of the kernel accepts, except names that are not UTF-8 or look like
// an address.
func TestInterfaceNames(t *testing.T) {
	for name, valid := range map[string]bool{
		"wan0": true, "lan0.10": true, "wän0": true, "ппп0": true, "a'b;$c": true, "x\x1by": true, "x\x7f": true, "123456789012345": true, "家庭网络0": true,
		"": false, ".": false, "..": false, "a/b": false, "a:b": false, "a b": false, "a\tb": false, "a\u00a0": false, "a\x00b": false,
		"1234567890123456": false, "äääääääx": true, "ääääääää": false, "家庭网络网络": false,
		"à0":       false, // its second byte, 0xa0, is a space for the kernel
		"x\xff":    false, // not UTF-8, so it cannot be in a configuration file
		"10.0.0.1": false, "[x]": false, "...": false,
	} {
		if err := rule.CheckInterfaceName(name); (err == nil) != valid {
			t.Errorf("%q: %v, want valid %v", name, err, valid)
		}
	}
}
