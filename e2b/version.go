package e2b

import (
	"strconv"
	"strings"
)

// olderThan compares two versions of the daemon, such as "0.6.13". A version
// that cannot be read is not older than any.
func olderThan(version, than string) bool {
	v, ok := parseVersion(version)
	w, okay := parseVersion(than)
	if !ok || !okay {
		return false
	}
	for i := range v {
		if v[i] != w[i] {
			return v[i] < w[i]
		}
	}
	return false
}

// parseVersion reads MAJOR.MINOR.PATCH, with or without a v before it, and
// leaves out what comes after.
func parseVersion(s string) (v [3]uint64, ok bool) {
	s = strings.TrimPrefix(s, "v")
	if i := strings.IndexAny(s, "-+"); i >= 0 {
		s = s[:i]
	}
	parts := strings.Split(s, ".")
	if len(parts) != len(v) {
		return v, false
	}
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 32)
		if err != nil {
			return v, false
		}
		v[i] = n
	}
	return v, true
}
