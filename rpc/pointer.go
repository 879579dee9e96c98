package rpc

import (
	"strconv"
	"strings"
)

// StringAt returns the string that a JSON pointer (RFC 6901) leads to in a
// config, and a function that replaces it there. ok is false where there is
// none.
func StringAt(config map[string]any, pointer string) (s string, set func(string), ok bool) {
	rest, ok := strings.CutPrefix(pointer, "/")
	if !ok {
		return "", nil, false
	}
	var at any = config
	for token := range strings.SplitSeq(rest, "/") {
		token = strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
		switch v := at.(type) {
		case map[string]any:
			at = v[token]
			set = func(s string) { v[token] = s }
		case []any:
			i, err := strconv.Atoi(token)
			if err != nil || i < 0 || i >= len(v) {
				return "", nil, false
			}
			at = v[i]
			set = func(s string) { v[i] = s }
		default:
			return "", nil, false
		}
	}
	if s, ok = at.(string); !ok {
		return "", nil, false
	}
	return s, set, true
}
