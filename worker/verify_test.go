package worker_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote/rpc"
)

func TestVerifyFiles(t *testing.T) {
	h := start(t, nil)
	h.handshake()
	name := filepath.Join(h.dir, "input.csv")
	if err := os.WriteFile(name, []byte("a,b\n1,2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	size, sum, err := rpc.XXH3(strings.NewReader("a,b\n1,2\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		file rpc.FileSum
		want string // in the message; empty means that it is as it was sent
	}{
		{"whole", rpc.FileSum{Path: name, Size: size, XXH3: sum}, ""},
		{"short", rpc.FileSum{Path: name, Size: size + 1, XXH3: sum}, "it has 8 bytes, 9 were sent"},
		{"changed", rpc.FileSum{Path: name, Size: size, XXH3: strings.Repeat("0", 32)}, "it was sent with 0000"},
		{"missing", rpc.FileSum{Path: name + ".gz", Size: size, XXH3: sum}, "no such file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := h.call(rpc.MethodVerifyFiles, rpc.VerifyFiles{Files: []rpc.FileSum{test.file}}, nil)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, &rpc.Error{Code: rpc.CodeDamagedFile}) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.file.Path) {
				t.Errorf("got %v, want code %d about %q", err, rpc.CodeDamagedFile, test.want)
			}
		})
	}
}
