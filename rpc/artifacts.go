package rpc

import (
	"fmt"
	"path"
	"strings"
)

// SealArtifacts says which artifacts are wanted: what is not is listed without
// being read. The zero value wants everything.
//
// Globs are matched with slash-separated paths as "step/dir/file.csv": "*", "?"
// and "[a-z]" as in [path.Match] stand for what is in one element of a path, and
// an element that is "**" for any number of elements, also none.
type SealArtifacts struct {
	Include      []string `json:"include,omitempty"`        // globs, of which one has to match; none means everything
	Exclude      []string `json:"exclude,omitempty"`        // globs, of which none may match
	MaxFileBytes int64    `json:"max_file_bytes,omitempty"` // of a file; zero means no limit
	Always       []string `json:"always,omitempty"`         // globs of files that are wanted whatever is above
}

// Unwanted says why a file is not wanted; it is empty for one that is.
func (s *SealArtifacts) Unwanted(name string, size int64) (reason string) {
	if matchesAny(s.Always, name) != "" {
		return ""
	}
	if len(s.Include) > 0 && matchesAny(s.Include, name) == "" {
		return "no glob includes it"
	}
	if glob := matchesAny(s.Exclude, name); glob != "" {
		return fmt.Sprintf("the glob %.200q excludes it", glob)
	}
	if s.MaxFileBytes > 0 && size > s.MaxFileBytes {
		return fmt.Sprintf("it has %d bytes, more than the %d that a file may have", size, s.MaxFileBytes)
	}
	return ""
}

// matchesAny returns the first glob that matches; empty when none does.
func matchesAny(globs []string, name string) string {
	for _, glob := range globs {
		if matchGlob(glob, name) {
			return glob
		}
	}
	return ""
}

// CheckGlob says what is wrong with a glob, see [SealArtifacts].
func CheckGlob(glob string) error {
	if glob == "" || strings.HasPrefix(glob, "/") || strings.HasSuffix(glob, "/") {
		return fmt.Errorf("%q is no glob: it matches paths as \"step/file.csv\"", glob)
	}
	elements := strings.Split(glob, "/")
	if len(glob) > maxGlobBytes || len(elements) > maxGlobElements {
		return fmt.Errorf("the glob %.100q is too long", glob)
	}
	for _, element := range elements {
		if _, err := path.Match(element, ""); err != nil || element == "" {
			return fmt.Errorf("%q is no glob: %q is not as in path.Match", glob, element)
		}
	}
	return nil
}

const (
	maxGlobBytes    = 4096
	maxGlobElements = 64
)

// matchGlob reports whether a glob matches a path, see [SealArtifacts]. What is no
// glob matches nothing.
func matchGlob(glob, name string) bool {
	if CheckGlob(glob) != nil {
		return false
	}
	globs, names := strings.Split(glob, "/"), strings.Split(name, "/")
	// Only the last "**" need ever be tried again.
	g, n, again, from := 0, 0, -1, 0
	for n < len(names) {
		switch {
		case g < len(globs) && globs[g] == "**":
			g++
			again, from = g, n
			continue
		case g < len(globs):
			if ok, _ := path.Match(globs[g], names[n]); ok {
				g, n = g+1, n+1
				continue
			}
		}
		if again < 0 {
			return false
		}
		from++
		g, n = again, from
	}
	for g < len(globs) && globs[g] == "**" {
		g++
	}
	return g == len(globs)
}

// EscapeGlob returns the glob that matches one path.
func EscapeGlob(name string) string {
	return strings.NewReplacer("\\", "\\\\", "*", "\\*", "?", "\\?", "[", "\\[").Replace(name)
}
