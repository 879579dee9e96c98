package hostname_test

import (
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote/internal/hostname"
)

func TestValid(t *testing.T) {
	long := strings.Repeat("a", 63)
	for s, want := range map[string]bool{
		"db": true, "db.example.com": true, "Db-1.Example_x.com": true, "1.example": true, long + ".com": true,
		strings.Repeat("abcdefg.", 31) + "abcde": true, strings.Repeat("abcdefg.", 31) + "abcdef": false,
		"": false, ".": false, "db.": false, ".db": false, "a..b": false, "-a": false, "a-": false, long + "a.com": false,
		"10.0.0": false, "db.1": false, "a b": false, "a/b": false, "*.a": false, "a:1": false, "\u00e9.com": false,
	} {
		if got := hostname.Valid(s); got != want {
			t.Errorf("Valid(%q) = %v", s, got)
		}
	}
}
