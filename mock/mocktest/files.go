package mocktest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"testing/iotest"
)

// random returns bytes of all values, the same for the same seed.
func random(seed uint64, n int) string {
	r := rand.NewChaCha8([32]byte{byte(seed)})
	b := make([]byte, n)
	r.Read(b)
	return string(b)
}

// equal compares data too long to print.
func (h *harness) equal(what, got, want string) {
	h.Helper()
	if got == want {
		return
	}
	same := 0
	for same < min(len(got), len(want)) && got[same] == want[same] {
		same++
	}
	h.Errorf("%s: got %d bytes, want %d; they differ from byte %d on", what, len(got), len(want), same)
}

func testInfo(h *harness) {
	info := h.Sandbox.Info()
	if info.ID == "" {
		h.Error("Info has no ID")
	}
	if again := h.Sandbox.Info(); again != info {
		h.Errorf("Info changed from %+v to %+v", info, again)
	}
}

func testUploadDownload(h *harness) {
	for _, size := range []int{0, 1, 4095, 64 << 10, 8<<20 + 13} {
		name := h.path(fmt.Sprintf("new/dirs/file-%d", size))
		data := random(1, size)
		h.upload(name, data)
		h.equal(fmt.Sprintf("file of %d bytes", size), h.download(name), data)
		if n, err := h.Sandbox.Size(h.ctx(), name); err != nil || n != int64(size) {
			h.Errorf("Size of a file of %d bytes: %d, %v", size, n, err)
		}
	}
}

func testUploadReplaces(h *harness) {
	name := h.path("file")
	h.upload(name, "a longer first version")
	h.upload(name, "second")
	h.equal("replaced file", h.download(name), "second")

	p := h.start(h.Command(Cat)) // replacing goes on while processes run
	h.upload(name, "")
	h.equal("emptied file", h.download(name), "")
	p.Stdin().Close()
	h.equal("output", h.read(p), "")
	h.wait(p)
}

func testUploadFails(h *harness) {
	broken := errors.New("broken reader")
	const size = 1 << 20
	half := random(2, size/2)
	name := h.path("dir/file")
	for _, test := range []struct {
		name   string
		reader func() io.Reader
		is     error // nil means any
	}{
		{"reader that fails half way", func() io.Reader {
			return io.MultiReader(strings.NewReader(half), iotest.ErrReader(broken))
		}, broken},
		{"reader that fails at once", func() io.Reader { return iotest.ErrReader(broken) }, broken},
		{"reader that is too short", func() io.Reader { return strings.NewReader(half) }, nil},
		{"reader that is too long", func() io.Reader { return strings.NewReader(half + half + "!") }, nil},
	} {
		upload := func(name string) {
			err := h.Sandbox.Upload(h.ctx(), name, test.reader(), size)
			if err == nil || test.is != nil && !errors.Is(err, test.is) {
				h.Errorf("Upload of a %s: %v, want an error that matches %v", test.name, err, test.is)
			}
		}
		upload(name)
		if _, err := h.tryDownload(h.ctx(), name); !errors.Is(err, fs.ErrNotExist) {
			h.Errorf("Upload of a %s leaves something: Download: %v, want fs.ErrNotExist", test.name, err)
		}
		h.upload(name+".old", "old")
		upload(name + ".old")
		if got := h.download(name + ".old"); got != "old" {
			h.Errorf("Upload of a %s damages the old file: it has %d bytes", test.name, len(got))
		}
	}
}

// testUploadWhole checks that who downloads while a file is replaced sees the
// old one or the new one.
func testUploadWhole(h *harness) {
	name := h.path("file")
	const size = 1 << 20
	versions := []string{strings.Repeat("a", size), strings.Repeat("b", 2*size)}
	h.upload(name, versions[0])
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		defer close(stop)
		for i := range 8 {
			v := versions[(i+1)%2]
			if err := h.Sandbox.Upload(h.ctx(), name, strings.NewReader(v), int64(len(v))); err != nil {
				h.Errorf("Upload: %v", err)
			}
		}
	})
	for seen := 0; ; seen++ {
		select {
		case <-stop:
			wg.Wait()
			return
		default:
		}
		got, err := h.tryDownload(h.ctx(), name)
		if err != nil {
			h.Errorf("Download %d: %v", seen, err)
		} else if got != versions[0] && got != versions[1] {
			h.Errorf("Download %d: %d bytes of neither version", seen, len(got))
		}
	}
}

func testDownloadMissing(h *harness) {
	for _, name := range []string{h.path("missing"), h.path("missing/dir/file")} {
		if _, err := h.tryDownload(h.ctx(), name); !errors.Is(err, fs.ErrNotExist) {
			h.Errorf("Download(%q): %v, want fs.ErrNotExist", name, err)
		}
		if _, err := h.Sandbox.Size(h.ctx(), name); !errors.Is(err, fs.ErrNotExist) {
			h.Errorf("Size(%q): %v, want fs.ErrNotExist", name, err)
		}
	}
	h.upload(h.path("file"), "")
	if got := h.download(h.path("file")); got != "" {
		h.Errorf("an empty file holds %q", got)
	}
}

// oddNames are legal file names and arguments that quoting or encoding may
// break.
var oddNames = []string{
	"two words",
	" leading and trailing ",
	`it's "quoted"`,
	"new\nline",
	"tab\tbed",
	"Żółć-日本-😀",
	"50% off?a=b&c#d;e+f",
	`back\slash`,
	"$HOME `id` $(id)",
	"-rf",
	"*",
	strings.Repeat("long", 60),
}

func testNames(h *harness) {
	for i, name := range oddNames {
		h.upload(h.path("names/"+name), fmt.Sprint("content ", i))
	}
	for i, name := range oddNames {
		if got, want := h.download(h.path("names/"+name)), fmt.Sprint("content ", i); got != want {
			h.Errorf("%q holds %q, want %q", name, got, want)
		}
	}
}
