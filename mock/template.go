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

// Template is what sandboxes of a [Server] are made from. Others are built, by
// requests to the server.
type Template struct {
	ID          string   // empty means a random one
	Names       []string // by which it is found as well, the first is its alias
	CPU         int      // cores; zero means 2
	MemoryMB    int      // MiB; zero means 512
	DiskMB      int      // MiB, for show: see Options.DiskBytes; zero means 10240
	EnvdVersion string   // of the daemon; empty means 0.6.13

	// OtherTeam says that it is public and belongs to another team, as E2B's own
	// "base" does: sandboxes and templates can be made from it, but it is in no
	// list, and whoever asks about it is refused.
	OtherTeam bool
}

// baseTemplate is E2B's own, of 2 CPUs and 512 MiB.
func baseTemplate() Template {
	return Template{ID: "rki5dems9wqfm4r03t7g", Names: []string{"base"}}
}

// teamSlug is the namespace of the team that owns everything.
const teamSlug = "mock-team"

// template is a template or, with images, a snapshot. All but its ID is guarded
// by the server's lock.
type template struct {
	id        string
	names     []string
	foreign   bool // another team's
	public    bool
	snapshot  bool
	createdAt time.Time

	updatedAt   time.Time
	lastSpawned time.Time
	spawnCount  int
	buildCount  int
	deleted     bool
	builds      []*build     // as they were requested
	tags        []assignment // as they were made
}

// assignment gives a tag to a build, which an earlier one with the tag keeps
// until the build is ready.
type assignment struct {
	tag   string
	build *build
	at    time.Time
}

// size is what a build's sandboxes have.
type size struct {
	cpu, memoryMB, diskMB int
	envdVersion           string
}

func newTemplate(t Template, now time.Time) *template {
	made := &template{
		id:        cmp.Or(t.ID, newID()),
		names:     slices.Clone(t.Names),
		foreign:   t.OtherTeam,
		public:    t.OtherTeam,
		createdAt: now,
		updatedAt: now,
	}
	b := newBuild(size{
		cpu:         cmp.Or(t.CPU, 2),
		memoryMB:    cmp.Or(t.MemoryMB, 512),
		diskMB:      cmp.Or(t.DiskMB, defaultDiskMB),
		envdVersion: cmp.Or(t.EnvdVersion, envd.DefaultVersion),
	}, now)
	b.finishLocked(buildReady, now)
	made.addLocked(b, now, defaultTag)
	return made
}

const defaultDiskMB = 10240

// addLocked adds a build, with its tags.
func (t *template) addLocked(b *build, now time.Time, tags ...string) {
	t.builds = append(t.builds, b)
	t.buildCount++
	t.updatedAt = now
	for _, tag := range tags {
		t.tags = append(t.tags, assignment{tag, b, now})
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
	if len(t.names) == 0 {
		return ""
	}
	_, alias := splitName(t.names[0])
	return alias
}

// aliases are the names without their namespaces.
func (t *template) aliases() []string {
	list := make([]string, 0, len(t.names))
	for _, name := range t.names {
		_, alias := splitName(name)
		list = append(list, alias)
	}
	return list
}

// tagged returns the build that was given a tag last, of those that are ready
// if that is asked for, or nil.
func (t *template) tagged(tag string, ready bool) *build {
	for _, a := range slices.Backward(t.tags) {
		if a.tag == tag && (!ready || a.build.status == buildReady) {
			return a.build
		}
	}
	return nil
}

// build returns what sandboxes of a tag are made from, or nil. The ID of a build
// does as a tag.
func (t *template) build(tag string) *build {
	if b := t.tagged(tag, true); b != nil {
		return b
	}
	if b := t.buildByID(tag); b != nil && b.status == buildReady {
		return b
	}
	return nil
}

func (t *template) buildByID(id string) *build {
	for _, b := range t.builds {
		if b.id == id {
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
// without a namespace is one of the team's before it is anybody's.
func (s *Server) templateLocked(identifier string) *template {
	namespace, alias := splitName(identifier)
	names := []string{identifier}
	switch namespace {
	case "":
		names = []string{teamSlug + "/" + identifier, identifier}
	case teamSlug:
		names = []string{identifier, alias}
	}
	find := func(is func(*template) bool) *template {
		for _, t := range s.templates {
			if !t.deleted && is(t) {
				return t
			}
		}
		return nil
	}
	if t := find(func(t *template) bool { return t.id == identifier }); t != nil {
		return t
	}
	for k, name := range names {
		t := find(func(t *template) bool {
			return slices.Contains(t.names, name) && !(k > 0 && namespace != "" && t.foreign)
		})
		if t != nil {
			return t
		}
	}
	return nil
}
