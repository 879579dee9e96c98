package rpc_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/osiris-pipelines/remote/rpc"
)

// The hashes are those of python-xxhash, which wraps the reference implementation.
func TestXXH3(t *testing.T) {
	for _, test := range []struct{ name, data, want string }{
		{"empty", "", "99aa06d3014798d86001c324468d497f"},
		{"short", "osiris", "8b8012a32b7b0f19be802b3b9b9f26e3"},
		{"long", strings.Repeat("0123456789", 100_000), "e409166af5d8c7c739e1c4f4008ba0e6"},
	} {
		t.Run(test.name, func(t *testing.T) {
			size, sum, err := rpc.XXH3(strings.NewReader(test.data))
			if err != nil || size != int64(len(test.data)) || len(sum) != 32 {
				t.Fatalf("got %d, %q, %v", size, sum, err)
			}
			if sum != test.want {
				t.Errorf("got %s, want %s", sum, test.want)
			}
			_, again, err := rpc.XXH3(iotest.OneByteReader(strings.NewReader(test.data)))
			if err != nil || again != sum {
				t.Errorf("byte by byte: %s, %v, want %s", again, err, sum)
			}
		})
	}
	broken := errors.New("broken")
	if _, _, err := rpc.XXH3(io.MultiReader(bytes.NewReader(make([]byte, 10)), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}
