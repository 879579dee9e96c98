package python

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// errRequirement is matched by every error about what a requirement says.
var errRequirement = errors.New("python: requirement")

const (
	maxRequirements    = 1000
	maxRequirementSize = 1000 // bytes
)

// requirement is a requirement of PEP 508.
type requirement struct {
	name       string   // normalised as in PEP 503
	extras     []string // normalised, sorted
	specifiers []string // such as ">=2", sorted
	url        string
	marker     string
}

// String returns the requirement with nothing left to chance: two that say the
// same, in other words or another order, are the same string.
func (r requirement) String() string {
	var b strings.Builder
	b.WriteString(r.name)
	if len(r.extras) > 0 {
		b.WriteString("[" + strings.Join(r.extras, ",") + "]")
	}
	if r.url != "" {
		b.WriteString(" @ " + r.url)
	}
	b.WriteString(strings.Join(r.specifiers, ","))
	if r.marker != "" {
		b.WriteString(" ; " + r.marker)
	}
	return b.String()
}

// parseRequirements parses requirements of PEP 508, of several drivers: each is
// kept once, and they are sorted. Empty lines and comments, as files of
// requirements have them, are skipped.
func parseRequirements(lines []string) ([]requirement, error) {
	all := map[string]requirement{}
	for _, line := range lines {
		line, comment := strings.TrimSpace(line), false
		if comment = strings.HasPrefix(line, "#"); comment || line == "" {
			continue
		}
		if i := strings.Index(line, " #"); i >= 0 {
			line = strings.TrimSpace(line[:i])
		}
		r, err := parseRequirement(line)
		if err != nil {
			return nil, err
		}
		all[r.String()] = r
		if len(all) > maxRequirements {
			return nil, fmt.Errorf("%w: there are more than %d", errRequirement, maxRequirements)
		}
	}
	// A name alone says no more than the same name with a URL, but would have pip
	// look for it in an index; or with versions, but where there is none of them
	// pip would speak of requirements that are in conflict.
	for _, r := range all {
		if r.url == "" && r.specifiers == nil {
			continue
		}
		delete(all, requirement{name: r.name, extras: r.extras, marker: r.marker}.String())
		if r.marker == "" {
			delete(all, r.name)
		}
	}
	sorted := make([]requirement, 0, len(all))
	for _, r := range all {
		sorted = append(sorted, r)
	}
	slices.SortFunc(sorted, func(a, b requirement) int { return strings.Compare(a.String(), b.String()) })
	return sorted, nil
}

// Requirements returns what is installed for drivers with these requirements of
// PEP 508, which are checked as a worker does: with what DataFrames cross by,
// without repetition, sorted, and each in the one way that all have to say the
// same. No error holds a user name or password of a URL.
func Requirements(requirements []string) ([]string, error) {
	parsed, err := parseRequirements(append(bridgeRequirements(), requirements...))
	if err != nil {
		return nil, err
	}
	return lines(parsed), nil
}

// parseRequirement parses one. What pip would take beside requirements, options
// and paths, is refused: an option may change where everything comes from, and
// what a path leads to is not in the key of an environment.
func parseRequirement(line string) (requirement, error) {
	refuse := func(why string, args ...any) (requirement, error) {
		if len(line) > 100 {
			line = line[:100] + "..."
		}
		return requirement{}, fmt.Errorf("%w %q: "+why, append([]any{errRequirement, hideUserinfo(line)}, args...)...)
	}
	switch {
	case len(line) > maxRequirementSize:
		return refuse("longer than %d bytes", maxRequirementSize)
	case strings.ContainsFunc(line, func(r rune) bool { return r != '\t' && (r < ' ' || r > '~') }):
		return refuse("has characters beyond printable ASCII")
	case strings.HasPrefix(line, "-e") || strings.HasPrefix(line, "--editable"):
		return refuse("an editable package is not a requirement: ship its source directory with the driver")
	case strings.HasPrefix(line, "-"):
		return refuse("an option of pip is not a requirement: name packages, and say where they come from by variables such as PIP_INDEX_URL and PIP_FIND_LINKS")
	case strings.Contains(strings.ReplaceAll(line, "\t", " "), " --"):
		return refuse("options of pip, such as --hash, cannot follow it")
	}
	head, marker, marked := strings.Cut(line, ";")
	if at := strings.Index(line, "@"); at >= 0 && at < len(head) {
		// A URL may have semicolons; only one after a space ends it.
		head, marker, marked = strings.Cut(line, " ;")
		if !marked {
			head = line
		}
	}
	r := requirement{marker: strings.Join(strings.Fields(marker), " ")}
	if marked && r.marker == "" {
		return refuse("nothing follows the semicolon")
	}
	rest := strings.TrimSpace(head)
	end := strings.IndexFunc(rest, func(c rune) bool { return !isNameByte(c) })
	if end < 0 {
		end = len(rest)
	}
	name := rest[:end]
	rest = strings.TrimSpace(rest[end:])
	if strings.HasPrefix(rest, "/") || strings.HasPrefix(rest, `\`) || strings.HasPrefix(name, ".") || strings.HasPrefix(rest, "://") || strings.HasPrefix(rest, "+") {
		return refuse("a path or URL alone is not a requirement: write \"name @ https://...\", or put wheels where PIP_FIND_LINKS says")
	}
	if !validName(name) {
		return refuse("does not begin with the name of a package")
	}
	r.name = normaliseName(name)
	if inner, ok := strings.CutPrefix(rest, "["); ok {
		extras, after, closed := strings.Cut(inner, "]")
		if !closed {
			return refuse("its [ is not closed")
		}
		for extra := range strings.SplitSeq(extras, ",") {
			if extra = strings.TrimSpace(extra); !validName(extra) {
				return refuse("%q is not the name of an extra", extra)
			}
			r.extras = append(r.extras, normaliseName(extra))
		}
		slices.Sort(r.extras)
		r.extras = slices.Compact(r.extras)
		rest = strings.TrimSpace(after)
	}
	if url, ok := strings.CutPrefix(rest, "@"); ok {
		r.url = strings.TrimSpace(url)
		if err := checkRequirementURL(r.url); err != nil {
			return refuse("%v", err)
		}
		return r, nil
	}
	if inner, ok := strings.CutPrefix(rest, "("); ok {
		inner, ok = strings.CutSuffix(inner, ")")
		if rest = strings.TrimSpace(inner); !ok || rest == "" {
			return refuse("its ( is not closed, or holds nothing")
		}
	}
	if rest == "" {
		return r, nil
	}
	for specifier := range strings.SplitSeq(rest, ",") {
		specifier, ok := parseSpecifier(specifier)
		if !ok {
			return refuse("%q is not a version specifier such as \">=2\"", specifier)
		}
		r.specifiers = append(r.specifiers, specifier)
	}
	slices.Sort(r.specifiers)
	r.specifiers = slices.Compact(r.specifiers)
	return r, nil
}

func parseSpecifier(s string) (specifier string, ok bool) {
	s = strings.TrimSpace(s)
	for _, op := range []string{"===", "==", "~=", "!=", "<=", ">=", "<", ">"} {
		version, found := strings.CutPrefix(s, op)
		if !found {
			continue
		}
		version = strings.TrimSpace(version)
		ok = version != "" && !strings.ContainsFunc(version, func(c rune) bool {
			return !isNameByte(c) && !strings.ContainsRune("+!*", c)
		})
		return op + version, ok
	}
	return s, false
}

// checkRequirementURL refuses a URL whose content may be another one tomorrow
// without anybody noticing, and one that would put a secret into the arguments
// of pip and the log.
func checkRequirementURL(url string) error {
	scheme, rest, ok := strings.Cut(url, "://")
	vcs, transport, isVCS := strings.Cut(strings.ToLower(scheme), "+")
	if !isVCS {
		transport = vcs
	}
	switch {
	case transport == "file":
		return errors.New("a file is not a requirement that an environment can be known by: put wheels where PIP_FIND_LINKS says, and require their names")
	case !ok || rest == "" || strings.ContainsAny(url, " \t\"<>\\^`{|}") ||
		transport != "https" && transport != "http" && (!isVCS || transport != "ssh") ||
		isVCS && !slices.Contains([]string{"git", "hg", "svn", "bzr"}, vcs):
		return errors.New("not a URL such as https://host/orders-1.0-py3-none-any.whl or git+https://host/orders@v1")
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	userinfo, _, has := strings.Cut(authority, "@")
	if has && (transport != "ssh" || strings.Contains(userinfo, ":")) {
		return errors.New("a URL with a user name or password would show it to others: have the package in a private index, whose credentials are kept (PIP_INDEX_URL)")
	}
	return nil
}

// hideUserinfo masks what is before the last @ of the host of a URL within s.
func hideUserinfo(s string) string {
	before, rest, ok := strings.Cut(s, "://")
	if !ok {
		return s
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 && !strings.Contains(rest[:at], "/") || at >= 0 && strings.Contains(rest[:at], ":") {
		rest = "***" + rest[at:]
	}
	return before + "://" + rest
}

func isNameByte(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
}

// validName reports whether s is a name of PEP 508.
func validName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool { return !isNameByte(c) }) &&
		!strings.ContainsRune("._-", rune(s[0])) && !strings.ContainsRune("._-", rune(s[len(s)-1]))
}

// normaliseName returns a name as PEP 503 compares them.
func normaliseName(s string) string {
	return strings.Join(strings.FieldsFunc(strings.ToLower(s), func(c rune) bool { return c == '.' || c == '_' || c == '-' }), "-")
}
