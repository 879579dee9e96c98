package remote

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/osiris-pipelines/remote/rpc"
	"github.com/osiris-pipelines/remote/worker"
)

// Limits of what a sandbox may say of its artifacts.
const (
	maxSealBytes = 1 << 30 // of the list; some 200 bytes a file
	maxSealEntry = 1 << 20 // of one entry of it
	maxSkipped   = 100_000 // that are named
	maxPathDepth = 64
	maxPathBytes = 1024
	maxNameBytes = 255 // of one element, as of most file systems

	maxSkippedBytes = 16 << 20 // of names and reasons of what is skipped
)

// collecting is what a run may bring home.
type collecting struct {
	steps  map[string]bool   // of the run
	wanted map[string]string // ExecutionContext.Outputs
	policy rpc.SealArtifacts
	files  int // at most, directories among them
	bytes  int64
	goos   string // of this machine
}

func (e *engine) collecting(r *run) collecting {
	policy, _ := e.cfg.policy() // which was valid when the adapter was made
	c := collecting{
		policy: wantedOutputs(policy, r.ec.Outputs),
		steps:  make(map[string]bool), wanted: r.ec.Outputs, goos: runtime.GOOS,
		files: cmp.Or(e.cfg.MaxArtifacts, defaultMaxArtifacts), bytes: cmp.Or(e.cfg.MaxArtifactBytes, defaultMaxArtifactBytes),
	}
	for _, step := range r.prepared.Plan.Steps {
		c.steps[step.ID] = true
	}
	return c
}

// sealed is what a run has left, as far as it is brought home: names that this
// machine can have, and no more than it wants. Sizes and checksums are the
// sandbox's word.
type sealed struct {
	artifacts []rpc.Artifact
	skipped   []SkippedArtifact
	more      int // skipped without a name
}

// withLost adds what an older list has and this one does not mention: a file that is
// gone is missing, and not forgotten.
func (s *sealed) withLost(older *sealed) *sealed {
	known := make(map[string]bool, len(s.artifacts)+len(s.skipped))
	for _, a := range s.artifacts {
		known[a.Path] = true
	}
	for _, a := range s.skipped {
		known[a.Path] = true
	}
	for _, a := range older.artifacts {
		if !known[a.Path] && s.more == 0 {
			s.artifacts = append(s.artifacts, a)
		}
	}
	return s
}

// chooser makes a sealed of a list, an entry after the other.
type chooser struct {
	collecting
	sealed

	seen    map[string]bool // files (true) and directories of artifacts
	entries int
	total   int64
	names   int // bytes of what is skipped
}

func (c collecting) chooser() *chooser {
	return &chooser{collecting: c, seen: make(map[string]bool)}
}

func (c *chooser) skip(name string, size int64, reason string) {
	s := SkippedArtifact{Path: printableName(clip(name, maxPathBytes)), Size: max(size, 0), Reason: printableName(clip(reason, maxPathBytes))}
	if c.names += len(s.Path) + len(s.Reason); len(c.skipped) >= maxSkipped || c.names > maxSkippedBytes {
		c.more++
		return
	}
	c.skipped = append(c.skipped, s)
}

// printableName is a name as it may be shown, in one line.
func printableName(name string) string {
	return rpc.Printable(strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(name))
}

// add takes an entry, or skips it. The error is for what no run can leave.
func (c *chooser) add(a rpc.Artifact) error {
	_, known := c.seen[a.Path]
	if !isInside(a.Path) || a.Size < 0 || known || folderOf(a.Path) == systemArtifacts && a.Path != installLog {
		return impossible(a)
	}
	why := c.unfit(a.Path)
	if why == "" {
		why = c.policy.Unwanted(a.Path, a.Size)
	}
	if why != "" {
		c.skip(a.Path, a.Size, why)
		return nil
	}
	_, wanted := c.wanted[a.Path]
	cost := 1 // and the directories that nothing else is in
	for dir := path.Dir(a.Path); dir != "."; dir = path.Dir(dir) {
		if file, known := c.seen[dir]; file {
			return impossible(a)
		} else if known {
			break
		}
		cost++
	}
	switch {
	case c.entries+cost > c.files && !wanted:
		c.skip(a.Path, a.Size, fmt.Sprintf("there are more than %d files and directories (Config.MaxArtifacts)", c.files))
		return nil
	case a.Size > c.bytes-c.total:
		c.skip(a.Path, a.Size, fmt.Sprintf("with its %d bytes there are more than %d (Config.MaxArtifactBytes)", a.Size, c.bytes))
		return nil
	}
	for dir := path.Dir(a.Path); dir != "."; dir = path.Dir(dir) {
		c.seen[dir] = false
	}
	c.seen[a.Path] = true
	c.entries += cost
	c.total += a.Size
	c.artifacts = append(c.artifacts, rpc.Artifact{
		Path: a.Path, Size: a.Size, SHA256: clip(a.SHA256, 2*sha256.Size), XXH3: clip(a.XXH3, 2*xxh3Size), Mode: a.Mode.Perm(),
	})
	return nil
}

func impossible(a rpc.Artifact) error {
	return fmt.Errorf("%w: the sandbox announces the artifact %.200q of %d bytes, which no run can leave", ErrProtocol, a.Path, a.Size)
}

// isInside reports whether a path can be that of a file in a directory of any
// system: what is not is no name, but a way out.
func isInside(name string) bool {
	return name != "" && name != "." && name[0] != '/' && path.Clean(name) == name &&
		name != ".." && !strings.HasPrefix(name, "../") && !strings.ContainsRune(name, 0)
}

// folderOf is the first element of a path.
func folderOf(name string) string {
	folder, _, _ := strings.Cut(name, "/")
	return folder
}

// stepOf is the step that has left a file; empty for the run's own.
func stepOf(name string) string {
	if name == installLog {
		return ""
	}
	return folderOf(name)
}

// unfit says why a file that a run may have left cannot be here; empty when it
// can.
func (c *collecting) unfit(name string) string {
	folder, rest, _ := strings.Cut(name, "/")
	switch {
	case name == installLog: // the worker's own
		return ""
	case !c.steps[folder] || rest == "":
		return "it is not in the folder of a step"
	case !utf8.ValidString(name):
		return "its name is not UTF-8"
	case rpc.Printable(name) != name || strings.ContainsAny(name, "\n\t"):
		return "its name has control characters"
	case len(name) > maxPathBytes || strings.Count(name, "/") >= maxPathDepth:
		return "its path is too long"
	case c.goos == "windows" && (strings.ContainsAny(name, `\:*?"<>|`) || !filepath.IsLocal(filepath.FromSlash(name))):
		return "Windows cannot have a file of this name"
	}
	for element := range strings.SplitSeq(name, "/") {
		switch {
		case len(element) > maxNameBytes:
			return "its name is too long"
		case c.goos == "windows" && (strings.HasSuffix(element, ".") || strings.HasSuffix(element, " ") || isDevice(element)):
			return "Windows cannot have a file of this name"
		}
	}
	return ""
}

// isDevice reports whether Windows takes a name for a device, also with an
// extension.
func isDevice(name string) bool {
	name, _, _ = strings.Cut(name, ".")
	name = strings.ToUpper(strings.TrimRight(name, " "))
	switch name {
	case "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$":
		return true
	}
	digit, ok := strings.CutPrefix(name, "COM")
	if !ok {
		digit, ok = strings.CutPrefix(name, "LPT")
	}
	return ok && slices.Contains([]string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "¹", "²", "³"}, digit)
}

// choose takes a list that is in memory.
func (c collecting) choose(list *rpc.SealResult) (*sealed, error) {
	to := c.chooser()
	for _, s := range list.Skipped {
		to.skip(s.Path, s.Size, s.Reason)
	}
	for _, a := range list.Artifacts {
		if err := to.add(a); err != nil {
			return nil, err
		}
	}
	return &to.sealed, nil
}

// read takes a list as it comes, so that its length costs no memory.
func (c collecting) read(r io.Reader) (*sealed, error) {
	to := c.chooser()
	broken := func(err error) error { return fmt.Errorf("%w: list of artifacts: %w", ErrProtocol, err) }
	in := &budgetReader{r: io.LimitReader(r, maxSealBytes+1), total: maxSealBytes}
	dec := json.NewDecoder(in)
	fail := func(err error) error {
		if in.err != nil { // of the connection
			return in.err
		}
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errHalfList
		}
		return broken(err)
	}
	next := func() { in.left = maxSealEntry }
	want := func(delim json.Delim) error {
		next()
		t, err := dec.Token()
		if err == nil && t != delim {
			err = fmt.Errorf("it has %.20q where %s should be", fmt.Sprint(t), delim)
		}
		if err != nil {
			return fail(err)
		}
		return nil
	}
	if err := want('{'); err != nil {
		return nil, err
	}
	complete := false
	for next(); dec.More(); next() {
		t, err := dec.Token()
		if err != nil {
			return nil, fail(err)
		}
		key, _ := t.(string)
		if key != "artifacts" && key != "skipped" {
			next()
			if err := dec.Decode(new(json.RawMessage)); err != nil {
				return nil, fail(err)
			}
			continue
		}
		next()
		switch t, err := dec.Token(); {
		case err != nil:
			return nil, fail(err)
		case t == nil: // null
			continue
		case t != json.Delim('['):
			return nil, broken(fmt.Errorf("%s is no list", key))
		}
		for next(); dec.More(); next() {
			if key == "skipped" {
				var s rpc.SkippedArtifact
				if err := dec.Decode(&s); err != nil {
					return nil, fail(err)
				}
				to.skip(s.Path, s.Size, s.Reason)
				continue
			}
			var a rpc.Artifact
			if err := dec.Decode(&a); err != nil {
				return nil, fail(err)
			}
			if err := to.add(a); err != nil {
				return nil, err
			}
		}
		if err := want(']'); err != nil {
			return nil, err
		}
		complete = complete || key == "artifacts"
	}
	if err := want('}'); err != nil {
		return nil, err
	}
	if !complete {
		return nil, broken(errors.New("it has no artifacts"))
	}
	return &to.sealed, nil
}

// errHalfList: the process that lists has ended before its list.
var errHalfList = errors.New("it is not whole")

// budgetReader reads no more than was allowed since, so that a decoder behind it
// cannot be made to hold more.
type budgetReader struct {
	r     io.Reader
	left  int
	total int64
	err   error // of r, but the end
}

func (b *budgetReader) Read(p []byte) (int, error) {
	switch {
	case b.left <= 0:
		return 0, fmt.Errorf("an entry is larger than %d MiB", maxSealEntry>>20)
	case b.total <= 0:
		return 0, fmt.Errorf("it is larger than %d MiB", maxSealBytes>>20)
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	b.total -= int64(n)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// seal lists the artifacts by a process of its own, since the worker is gone. It
// is told what is wanted if it can be: what comes is looked at again.
func seal(ctx context.Context, pl *place, limit collecting) (*sealed, error) {
	want, err := json.Marshal(limit.policy)
	if err == nil && string(want) != "{}" && len(want) <= maxWanted {
		list, err := sealBy(ctx, pl, limit, "-want", string(want))
		if !errors.Is(err, errUsage) {
			return list, err
		}
	}
	return sealBy(ctx, pl, limit)
}

// errUsage: a command does not know its arguments.
var errUsage = errors.New("the worker program is of another version")

func sealBy(ctx context.Context, pl *place, limit collecting, args ...string) (list *sealed, err error) {
	stderr := &lastLines{}
	cmd := tell(pl, "seal", stderr)
	cmd.Args = append(cmd.Args, args...)
	status, err := captureBy(ctx, pl.sandbox, cmd, func(stdout io.Reader) error {
		var err error
		if list, err = limit.read(stdout); err != nil && errors.Is(err, errHalfList) {
			list, err = nil, nil // it has ended early, and says why
		}
		return err
	})
	if err == nil && (list == nil || status != ExitStatus{}) {
		err = fmt.Errorf("%s: %w", status, &tailError{stderr.String()})
		if status.Code == 2 && status.Signal == "" {
			err = fmt.Errorf("%w: %w", errUsage, err)
		}
		if status == (ExitStatus{}) {
			err = fmt.Errorf("%w: list of artifacts: %w", ErrProtocol, errHalfList)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("seal artifacts: %w", err)
	}
	return list, nil
}

// tell is a command of the worker's program that prints something about the run's
// folder.
func tell(pl *place, command string, stderr io.Writer) Command {
	return Command{Path: pl.program, Args: []string{worker.Arg, command, "-dir", pl.dir}, Stderr: stderr}
}

// printed returns what a command of the worker's program prints about the run's
// folder.
func printed(ctx context.Context, pl *place, command string, limit int64) ([]byte, error) {
	stderr := &lastLines{}
	b, status, err := capture(ctx, pl.sandbox, tell(pl, command, stderr), limit+1)
	switch {
	case int64(len(b)) > limit:
		return nil, fmt.Errorf("%w: the answer is larger than %d MiB", ErrProtocol, limit>>20)
	case err != nil:
		return nil, err
	case status != (ExitStatus{}):
		return nil, fmt.Errorf("%s: %s", status, rpc.Printable(stderr.String()))
	}
	return b, nil
}
