package envd

import (
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

const (
	gzipped  = "gzip"
	identity = "identity"
)

// coding is an element of an Accept-Encoding or Content-Encoding header.
type coding struct {
	name    string
	quality float64
}

func parseCoding(s string) coding {
	name, params, _ := strings.Cut(s, ";")
	c := coding{name: strings.ToLower(strings.TrimSpace(name)), quality: 1}
	for param := range strings.SplitSeq(params, ";") {
		value, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(param)), "q=")
		if q, err := strconv.ParseFloat(value, 64); ok && err == nil {
			c.quality = q
		}
	}
	return c
}

// acceptable returns the coding a client likes best, and whether it takes a
// body without any. The name is empty if there is no coding to agree on.
func acceptable(header string) (name string, plain bool) {
	if header == "" {
		return identity, true
	}
	var accepted []coding
	refused, identityAccepted := map[string]bool{}, false
	for s := range strings.SplitSeq(header, ",") {
		c := parseCoding(s)
		if c.quality == 0 {
			refused[c.name] = true
			continue
		}
		identityAccepted = identityAccepted || c.name == identity
		accepted = append(accepted, c)
	}
	plain = !refused[identity] && (!refused["*"] || identityAccepted)
	slices.SortStableFunc(accepted, func(a, b coding) int { return cmp.Compare(b.quality, a.quality) })
	for _, c := range accepted {
		switch {
		case c.name == gzipped || c.name == identity:
			return c.name, plain
		case c.name == "*" && !plain:
			return gzipped, plain
		case c.name == "*":
			return identity, plain
		}
	}
	if plain {
		return identity, plain
	}
	return "", plain
}

var errNotAcceptable = errors.New("no acceptable encoding: there are gzip and identity")

// responseCoding chooses how a file is sent. Ranges and conditions are about
// the file as it is.
func responseCoding(r *http.Request) (string, error) {
	name, plain := acceptable(r.Header.Get("Accept-Encoding"))
	if name == "" {
		return "", errNotAcceptable
	}
	for _, condition := range []string{"Range", "If-Modified-Since", "If-None-Match", "If-Range"} {
		if r.Header.Get(condition) == "" {
			continue
		}
		if !plain {
			return "", errNotAcceptable
		}
		return identity, nil
	}
	return name, nil
}

// decoded returns the body of a request without its coding.
func decoded(r *http.Request) (io.ReadCloser, error) {
	header := r.Header.Get("Content-Encoding")
	switch parseCoding(header).name {
	case "", identity:
		return r.Body, nil
	case gzipped:
		zr, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, fmt.Errorf("decompress request: %w", err)
		}
		return zr, nil
	default:
		return nil, fmt.Errorf("content encoding %q is not known, gzip is", header)
	}
}
