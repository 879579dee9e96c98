package worker

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestExcerpt(t *testing.T) {
	for _, n := range []int{0, 1, excerptHalf, excerptHalf + 1, 2 * excerptHalf, 2*excerptHalf + 1, 10 * excerptHalf} {
		for _, chunk := range []int{1, 1000, 1 << 20} {
			var all strings.Builder
			for i := 0; all.Len() < n; i++ {
				fmt.Fprintf(&all, "%07d\n", i)
			}
			said := all.String()[:n]
			var e excerpt
			for rest := said; len(rest) > 0; {
				k := min(chunk, len(rest))
				if m, err := e.Write([]byte(rest[:k])); m != k || err != nil {
					t.Fatalf("Write: %d, %v", m, err)
				}
				rest = rest[k:]
			}
			got := e.String()
			if n <= 2*excerptHalf {
				if got != said {
					t.Errorf("%d bytes in chunks of %d: it has %d", n, chunk, len(got))
				}
				continue
			}
			head, tail, found := strings.Cut(got, fmt.Sprintf("\n... (%d bytes) ...\n", n-2*excerptHalf))
			if !found || head != said[:excerptHalf] || tail != said[n-excerptHalf:] {
				t.Errorf("%d bytes in chunks of %d: the excerpt is not their two ends", n, chunk)
			}
		}
	}
	var e excerpt
	fmt.Fprint(&e, strings.Repeat("ü", 3*excerptHalf))
	if !utf8.ValidString(e.String()) {
		t.Error("an excerpt that is cut in a character is not UTF-8")
	}
}
