package secrets_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/osiris-pipelines/remote/secrets"
)

// randomSecrets makes n secrets of 16 to 63 bytes, as generators of passwords do.
func randomSecrets(n int) []string {
	const chars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!@#%&*_-+=/."
	rnd := rand.New(rand.NewPCG(1, 2))
	list := make([]string, n)
	for i := range list {
		b := make([]byte, 16+rnd.IntN(48))
		for j := range b {
			b[j] = chars[rnd.IntN(len(chars))]
		}
		list[i] = string(b)
	}
	return list
}

// logText is size bytes of what a pipeline logs.
func logText(size int) []byte {
	var b bytes.Buffer
	rnd := rand.New(rand.NewPCG(3, 4))
	words := strings.Fields("the step extract-movies has read rows from table customers in batch of time elapsed seconds connection to host is open query SELECT id name FROM orders WHERE created_at INFO DEBUG worker started driver mysql.extractor warning retry after timeout")
	for b.Len() < size {
		fmt.Fprintf(&b, `2026-11-28T11:%02d:%02d.%06dZ INFO step="extract-%d" rows=%d `, rnd.IntN(60), rnd.IntN(60), rnd.IntN(1e6), rnd.IntN(20), rnd.IntN(1e6))
		for range 12 {
			b.WriteString(words[rnd.IntN(len(words))])
			b.WriteByte(' ')
		}
		b.WriteByte('\n')
	}
	return b.Bytes()[:size]
}

func longest(list []string) (s string) {
	for _, v := range list {
		if len(v) > len(s) {
			s = v
		}
	}
	return s
}

// The texts without hits. "near" has a beginning of a secret everywhere, and the
// windows of others.
func benchTexts(known []string) map[string][]byte {
	var near, windows bytes.Buffer
	for near.Len() < 1<<20 {
		for _, s := range known {
			near.WriteString(s[:len(s)-1])
			near.WriteByte(' ')
			for i := 0; i+6 <= len(s); i += 6 {
				windows.WriteString(s[i : i+6])
				windows.WriteByte('~')
			}
		}
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	noise := make([]byte, 3<<18)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	return map[string][]byte{
		"log":     logText(1 << 20),
		"json":    bytes.Repeat([]byte(`{"ts":"2026-11-28T11:18:00.123456Z","session":"run_0001","event":"rows_read","step_id":"extract-movies","value":12345,"tags":{"key":"df"}}`+"\n"), 7500),
		"base64":  []byte(base64.StdEncoding.EncodeToString(noise)),
		"hex":     []byte(fmt.Sprintf("%x", noise[:1<<19])),
		"near":    near.Bytes()[:1<<20],
		"windows": windows.Bytes()[:1<<20],
		"urls":    bytes.Repeat([]byte("https://user:80/a@b "), 50000),
		"slashes": bytes.Repeat([]byte(`\\\\\\\`), 150000),
		"same":    bytes.Repeat([]byte("a"), 1<<20),
	}
}

func BenchmarkRedact(b *testing.B) {
	known := randomSecrets(100)
	r := secrets.NewRedactor(known...)
	texts := benchTexts(known)
	for _, name := range []string{"log", "json", "base64", "hex", "near", "windows", "urls", "slashes", "same"} {
		text := texts[name]
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				r.Bytes(text)
			}
		})
	}
	b.Run("index", func(b *testing.B) { // to compare with
		one := []byte(longest(known))
		b.SetBytes(1 << 20)
		for b.Loop() {
			bytes.Index(texts["log"], one)
		}
	})
	b.Run("line", func(b *testing.B) {
		line := logText(200)
		b.SetBytes(200)
		for b.Loop() {
			r.Bytes(line)
		}
	})
	b.Run("writer", func(b *testing.B) {
		w := r.Writer(io.Discard)
		line := logText(200)
		b.SetBytes(200)
		for b.Loop() {
			_, _ = w.Write(line)
		}
	})
}

func BenchmarkNewRedactor(b *testing.B) {
	known := randomSecrets(100)
	b.ReportAllocs()
	for b.Loop() {
		secrets.NewRedactor(known...)
	}
}
