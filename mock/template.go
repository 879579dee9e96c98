package mock

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/osiris-pipelines/remote/mock/internal/envd"
)

// Template is what sandboxes of a [Server] are made from.
type Template struct {
	ID          string   // empty means a random one
	Names       []string // by which it is found as well, the first is its alias
	CPU         int      // cores; zero means 2
	MemoryMB    int      // MiB; zero means 512
	DiskMB      int      // MiB, for show: see Options.DiskBytes; zero means 10240
	EnvdVersion string   // of the daemon; empty means 0.6.13
}

// baseTemplate is E2B's own, of 2 CPUs and 512 MiB.
func baseTemplate() Template {
	return Template{ID: "rki5dems9wqfm4r03t7g", Names: []string{"base"}}
}

// teamSlug is the namespace of the team that owns everything.
const teamSlug = "mock-team"

// template is a template or, with images, a snapshot. What comes after names is
// guarded by the server's lock.
type template struct {
	Template
	snapshot  bool
	createdAt time.Time

	updatedAt   time.Time
	lastSpawned time.Time
	spawnCount  int
	deleted     bool
	builds      []*build
}

// build is a version of a template.
type build struct {
	id        string
	tag       string
	image     envd.Machine // nil in a template that is no snapshot
	sandbox   string       // of which it is a snapshot
	createdAt time.Time
}

func newTemplate(t Template, now time.Time) *template {
	t.ID = cmp.Or(t.ID, newID())
	t.Names = slices.Clone(t.Names)
	t.CPU = cmp.Or(t.CPU, 2)
	t.MemoryMB = cmp.Or(t.MemoryMB, 512)
	t.DiskMB = cmp.Or(t.DiskMB, 10240)
	t.EnvdVersion = cmp.Or(t.EnvdVersion, envd.DefaultVersion)
	return &template{
		Template:  t,
		createdAt: now,
		updatedAt: now,
		builds:    []*build{{id: newUUID(), tag: defaultTag, createdAt: now}},
	}
}

func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// spawned counts a sandbox.
func (t *template) spawned(now time.Time) {
	t.spawnCount++
	t.lastSpawned = now
}

// alias is the template's first name without its namespace.
func (t *template) alias() string {
	if len(t.Names) == 0 {
		return ""
	}
	_, alias := splitName(t.Names[0])
	return alias
}

// aliases are the names without their namespaces.
func (t *template) aliases() []string {
	list := make([]string, 0, len(t.Names))
	for _, name := range t.Names {
		_, alias := splitName(name)
		list = append(list, alias)
	}
	return list
}

// build returns the build of a tag, or nil.
func (t *template) build(tag string) *build {
	for _, b := range t.builds {
		if b.tag == tag {
			return b
		}
	}
	return nil
}

// close removes the images.
func (t *template) close() error {
	var errs []error
	for _, b := range t.builds {
		if b.image != nil {
			errs = append(errs, b.image.Close())
		}
	}
	return errors.Join(errs...)
}

const defaultTag = "default"

// splitName splits "namespace/alias".
func splitName(identifier string) (namespace, alias string) {
	if before, after, ok := strings.Cut(identifier, "/"); ok {
		return before, after
	}
	return "", identifier
}

// parseName reads "namespace/alias:tag", of which all but the alias may be
// missing.
func parseName(input string) (identifier, tag string, err error) {
	identifier, tag, tagged := strings.Cut(strings.TrimSpace(input), ":")
	if tagged {
		if tag, err = clean(tag, "tag", "-_."); err != nil {
			return "", "", err
		}
	}
	namespace, alias, named := strings.Cut(identifier, "/")
	if !named {
		namespace, alias = "", identifier
	} else if namespace, err = clean(namespace, "namespace", "-_"); err != nil {
		return "", "", err
	}
	if alias, err = clean(alias, "template ID", "-_"); err != nil {
		return "", "", err
	}
	if named {
		alias = namespace + "/" + alias
	}
	return alias, tag, nil
}

// clean checks a part of a name and returns it in lower case.
func clean(value, what, punctuation string) (string, error) {
	cleaned := strings.ToLower(strings.TrimSpace(value))
	bad := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune(punctuation, r)
	}
	if cleaned == "" || strings.ContainsFunc(cleaned, bad) {
		return "", fmt.Errorf("invalid %s: %s", what, value)
	}
	return cleaned, nil
}

// templateLocked finds a template by its ID or one of its names. A name
// without a namespace may be one of the team's.
func (s *Server) templateLocked(identifier string) *template {
	namespace, alias := splitName(identifier)
	for _, t := range s.templates {
		if t.deleted {
			continue
		}
		if t.ID == identifier || slices.Contains(t.Names, identifier) ||
			namespace == "" && slices.Contains(t.Names, teamSlug+"/"+identifier) ||
			namespace == teamSlug && slices.Contains(t.Names, alias) {
			return t
		}
	}
	return nil
}
