package csv

import (
	"archive/zip"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/osiris-pipelines/remote/worker"
	"github.com/ulikunitz/xz"
	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/ianaindex"
	"golang.org/x/text/transform"
)

// encodingError is a byte that is no text in the file's encoding.
type encodingError struct {
	encoding string
	value    byte
	reason   string // instead of the value
}

func (e *encodingError) Error() string {
	if e.reason != "" {
		return e.reason
	}
	return fmt.Sprintf("byte 0x%02x is not %s text", e.value, e.encoding)
}

// charset is a resolved encoding.
type charset struct {
	kind  charsetKind
	order binary.ByteOrder  // of UTF-16; nil: by the byte order mark
	enc   encoding.Encoding // of kind other
}

type charsetKind int

const (
	utf8Text charsetKind = iota
	utf8BOM              // as utf8Text; a writer writes the mark
	asciiText
	latin1Text
	utf16Text
	otherText
)

// lookupCharset finds an encoding by the names Python, IANA and WHATWG use.
func lookupCharset(name string) (charset, error) {
	switch strings.NewReplacer("_", "-", " ", "-").Replace(strings.ToLower(strings.TrimSpace(name))) {
	case "utf-8", "utf8", "u8", "cp65001":
		return charset{kind: utf8Text}, nil
	case "utf-8-sig", "utf8-sig":
		return charset{kind: utf8BOM}, nil
	case "ascii", "us-ascii", "646", "ansi-x3.4-1968":
		return charset{kind: asciiText}, nil
	case "latin-1", "latin1", "iso-8859-1", "iso8859-1", "iso88591", "8859", "l1", "cp819":
		return charset{kind: latin1Text}, nil
	case "utf-16", "utf16", "u16":
		return charset{kind: utf16Text}, nil
	case "utf-16-le", "utf-16le", "utf16le":
		return charset{kind: utf16Text, order: binary.LittleEndian}, nil
	case "utf-16-be", "utf-16be", "utf16be":
		return charset{kind: utf16Text, order: binary.BigEndian}, nil
	}
	enc, err := htmlindex.Get(name)
	if err != nil {
		enc, err = ianaindex.IANA.Encoding(name)
	}
	if err != nil && len(name) > 2 && strings.EqualFold(name[:2], "cp") {
		enc, err = ianaindex.IANA.Encoding("IBM" + name[2:])
	}
	if err != nil || enc == nil {
		return charset{}, fmt.Errorf("unknown encoding %q; utf-8, utf-16, ascii, latin-1 and the names of the IANA registry are known", name)
	}
	return charset{kind: otherText, enc: enc}, nil
}

// source opens the text of a file, once for each pass.
type source struct {
	step        *worker.Step
	path        string
	compression string
	charset     charset
	encoding    string // as the config names it
	d           dialect
	warn        func(line int64, want, have int)
	fillSize    int // zero means blockBytes
}

var errIsDir = errors.New("path is a directory")

// open returns a tokenizer over the file and what closes it.
func (s *source) open(ctx context.Context) (*tokenizer, io.Closer, error) {
	f, err := s.step.Open(s.path)
	if err != nil {
		return nil, nil, err
	}
	if info, err := f.Stat(); err == nil && info.IsDir() {
		f.Close() //nolint:errcheck // only read from
		return nil, nil, errIsDir
	}
	r, err := s.decompress(f)
	if err != nil {
		f.Close() //nolint:errcheck // only read from
		return nil, nil, err
	}
	d := s.d
	switch s.charset.kind {
	case utf8Text, utf8BOM:
		d.checkUTF8 = true
	case asciiText:
		d.checkASCII = true
	case latin1Text:
		r = transform.NewReader(r, charmap.ISO8859_1.NewDecoder())
	case utf16Text:
		r = &utf16Reader{src: bufio.NewReaderSize(r, 64<<10), order: s.charset.order}
	default:
		r = &strictReader{src: transform.NewReader(r, s.charset.enc.NewDecoder()), encoding: s.encoding}
	}
	t := newTokenizer(&contextReader{ctx: ctx, src: r}, d)
	t.warn = s.warn
	if s.fillSize > 0 {
		t.fillSize = s.fillSize
	}
	return t, f, nil
}

func (s *source) decompress(f worker.File) (io.Reader, error) {
	kind := s.compression
	if kind == "infer" {
		kind = inferCompression(s.path)
	}
	switch kind {
	case "none":
		return f, nil
	case "gzip":
		r, err := gzip.NewReader(bufio.NewReaderSize(f, 64<<10))
		if errors.Is(err, io.EOF) {
			return bytes.NewReader(nil), nil // a zero-byte file, as pandas takes it
		}
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		return r, nil
	case "bz2":
		return bzip2.NewReader(bufio.NewReaderSize(f, 64<<10)), nil
	case "xz":
		r, err := xz.NewReader(bufio.NewReaderSize(f, 64<<10))
		if err != nil {
			return nil, fmt.Errorf("xz: %w", err)
		}
		return r, nil
	case "zip":
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		z, err := zip.NewReader(f, info.Size())
		if err != nil {
			return nil, fmt.Errorf("zip: %w", err)
		}
		if len(z.File) != 1 {
			return nil, fmt.Errorf("zip: the archive has %d files, want 1", len(z.File))
		}
		return z.File[0].Open()
	}
	return nil, fmt.Errorf("compression %q is not supported; use infer, gzip, bz2, zip, xz or none", kind)
}

// inferCompression goes by the extension, as pandas does.
func inferCompression(path string) string {
	path = strings.ToLower(path)
	for ext, kind := range map[string]string{
		".gz": "gzip", ".bz2": "bz2", ".zip": "zip", ".xz": "xz",
		".zst": "zstd", ".tar": "tar", ".tar.gz": "tar", ".tar.bz2": "tar", ".tar.xz": "tar",
	} {
		if strings.HasSuffix(path, ext) && (kind == "tar" || !strings.HasSuffix(strings.TrimSuffix(path, ext), ".tar")) {
			return kind
		}
	}
	return "none"
}

// contextReader stops reading when ctx is done.
type contextReader struct {
	ctx context.Context
	src io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.src.Read(p)
}

// strictReader makes the replacement character, which is how x/text decoders
// report bytes that are not text, an error.
type strictReader struct {
	src      io.Reader
	encoding string
	tail     []byte // the start of a replacement character at the end of the last read
}

func (r *strictReader) Read(p []byte) (int, error) {
	n, err := r.src.Read(p)
	joined := append(r.tail, p[:n]...)
	if i := bytes.Index(joined, []byte("\ufffd")); i >= 0 {
		return max(0, i-len(r.tail)), &encodingError{reason: "bytes that are not " + r.encoding + " text"}
	}
	r.tail = append([]byte(nil), joined[max(0, len(joined)-utf8.UTFMax+2):]...)
	return n, err
}

// utf16Reader decodes UTF-16 strictly.
type utf16Reader struct {
	src   *bufio.Reader
	order binary.ByteOrder
	out   []byte
	err   error
}

func (r *utf16Reader) Read(p []byte) (int, error) {
	if len(r.out) == 0 && r.err == nil {
		r.decode()
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	if n == 0 && len(p) > 0 {
		return 0, r.err
	}
	return n, nil
}

func (r *utf16Reader) decode() {
	if r.order == nil {
		mark, err := r.src.Peek(2)
		switch {
		case len(mark) == 0:
			r.err = err
			return
		case len(mark) == 2 && mark[0] == 0xff && mark[1] == 0xfe:
			r.order = binary.LittleEndian
		case len(mark) == 2 && mark[0] == 0xfe && mark[1] == 0xff:
			r.order = binary.BigEndian
		default:
			r.err = &encodingError{reason: "UTF-16 stream does not start with BOM"}
			return
		}
		r.src.Discard(2) //nolint:errcheck // just peeked
	}
	out := make([]byte, 0, 32<<10)
	for len(out) < 30<<10 {
		unit, err := r.unit()
		if err != nil {
			r.err = err
			break
		}
		c := rune(unit)
		if utf16.IsSurrogate(c) {
			low, err := r.unit()
			if err != nil && !errors.Is(err, io.EOF) {
				r.err = err
				break
			}
			if c = utf16.DecodeRune(c, rune(low)); c == utf8.RuneError {
				r.err = &encodingError{reason: "illegal UTF-16 surrogate"}
				break
			}
		}
		out = utf8.AppendRune(out, c)
	}
	r.out = out
}

func (r *utf16Reader) unit() (uint16, error) {
	var b [2]byte
	if _, err := io.ReadFull(r.src, b[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = &encodingError{reason: "truncated UTF-16 data"}
		}
		return 0, err
	}
	return r.order.Uint16(b[:]), nil
}
