// Package hostname tells names of hosts from other text.
package hostname

import (
	"strconv"
	"strings"
)

// Valid reports whether s is the name of a host: labels of letters, digits,
// dashes and underscores, 253 bytes at most, the last of them no number.
func Valid(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	labels := strings.Split(s, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			switch b := label[i]; {
			case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9', b == '-', b == '_':
			default:
				return false
			}
		}
	}
	_, err := strconv.Atoi(labels[len(labels)-1])
	return err != nil // else it is an address that was cut short
}
