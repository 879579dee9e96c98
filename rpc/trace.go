package rpc

// ValidTraceParent reports whether a text is a traceparent of the W3C's Trace
// Context in its version 00: two hex digits of the version, 32 of the trace, 16
// of the span, neither of them zero, and two of flags, in lower case.
func ValidTraceParent(s string) bool {
	const length = len("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	return len(s) == length && s[:3] == "00-" && s[35] == '-' && s[52] == '-' &&
		isID(s[3:35]) && isID(s[36:52]) && isHex(s[53:])
}

// isID reports whether a text is hex digits, and not all of them zero.
func isID(s string) bool {
	if !isHex(s) {
		return false
	}
	for i := range len(s) {
		if s[i] != '0' {
			return true
		}
	}
	return false
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
