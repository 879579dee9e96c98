package remote

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"

	"github.com/osiris-pipelines/remote/rpc"
)

// How artifacts come home: small ones in archives, where there are many, large
// ones in ranges, and others by a request each.
const (
	largeArtifact = 16 << 20 // bytes of the least that comes in ranges
	fewArtifacts  = 32       // small ones that are not worth a process

	archiveFiles   = 4096 // of one archive
	archiveBytes   = 32 << 20
	archiveNames   = 96 << 10 // bytes of their paths, which are arguments of a process
	archiveStreams = 4
	archiveTries   = 3 // in a row that bring no file
	archiveIdle    = time.Minute
	archiveGrace   = 5 * time.Second // for its process to end

	singleStreams = 8
	// lostInARow is how many artifacts may fail one behind the other, for other
	// reasons than what they are, before no more are tried.
	lostInARow = 8

	xxh3Size     = 16
	namedReasons = 16 // of what failed, in an error
)

// stagingDir is the directory in the artifacts directory where files are until
// they are whole and verified. It stays after a collection that is not complete,
// and says that what is in place has been verified before.
const stagingDir = ".collect"

// collector brings artifacts to where they belong. Each is verified and moved
// into place by itself. What the sandbox says of them is not believed, and nothing
// gets out of the artifacts directory, by a link either.
type collector struct {
	place  *place
	verify Verify
	logf   func(level slog.Level, format string, args ...any)

	dir     string   // of the artifacts
	root    *os.Root // it
	name    string   // of the staging directory
	staging *os.Root // it
	again   bool     // there is something of an earlier try

	create func(name string) (stagedFile, error) // in the staging directory; of tests
	claim  bool                                  // names may be the same for this machine that are not for the sandbox

	ctx    context.Context // ends when it makes no sense to go on
	cancel context.CancelCauseFunc
	files  atomic.Int64 // names in the staging directory
	lost   atomic.Int64 // in a row
	noPack atomic.Bool  // there are no archives

	mu     sync.Mutex
	got    *CollectedArtifacts
	failed []SkippedArtifact
	errs   []error // the first of them
}

// stagedFile is a file that is not in its place yet.
type stagedFile interface {
	io.Writer
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Stat() (fs.FileInfo, error)
}

// download brings the artifacts of a list home, and then calls after. An error
// is a [*CollectError], beside which all stands in got that is here. Until there
// is none the next try knows what is.
func download(ctx context.Context, pl *place, list *sealed, got *CollectedArtifacts, verify Verify, logf func(slog.Level, string, ...any), after func() error) error {
	c, err := newCollector(ctx, pl, list, got, verify, logf)
	if err != nil {
		return &CollectError{Got: got, Err: c.diskError(err)}
	}
	defer c.close()
	if err := c.collect(list); err != nil {
		return err
	}
	got.Status = CollectComplete
	if err = after(); err == nil {
		_ = c.staging.Close() // some systems do not remove what is open
		err = c.root.RemoveAll(c.name)
	}
	if err != nil {
		return &CollectError{Got: got, Err: c.diskError(err)}
	}
	return nil
}

func newCollector(ctx context.Context, pl *place, list *sealed, got *CollectedArtifacts, verify Verify, logf func(slog.Level, string, ...any)) (*collector, error) {
	c := &collector{place: pl, verify: verify, logf: logf, dir: got.ArtifactsDir, got: got, name: stagingDir}
	if c.verify == "" {
		c.verify = VerifySHA256
	}
	got.Status, got.Artifacts = CollectPartial, []Artifact{}
	got.Skipped, got.SkippedMore = slices.Clone(list.skipped), list.more
	for slices.ContainsFunc(list.artifacts, func(a rpc.Artifact) bool { return folderOf(a.Path) == c.name }) {
		c.name += "_" // it is a step's
	}
	var err error
	if c.root, err = os.OpenRoot(c.dir); err != nil {
		return c, err
	}
	err = c.root.Mkdir(c.name, 0o750)
	c.again = errors.Is(err, fs.ErrExist)
	if err == nil || c.again {
		c.staging, err = c.root.OpenRoot(c.name)
	}
	if err != nil {
		return c, errors.Join(err, c.root.Close())
	}
	c.create = func(name string) (stagedFile, error) {
		flag := os.O_CREATE | os.O_RDWR
		if !strings.HasSuffix(name, partSuffix) {
			flag |= os.O_EXCL
		}
		return c.staging.OpenFile(name, flag, 0o640)
	}
	c.claim = c.again && c.isThere("names") || foldsNames(c.staging)
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	return c, nil
}

func (c *collector) isThere(name string) bool {
	_, err := c.staging.Lstat(name)
	return err == nil
}

// close leaves a staging directory that holds only what a next try can use.
func (c *collector) close() {
	c.cancel(nil)
	c.staging.Close()
	c.root.Close()
}

// collect brings home what is not here yet.
func (c *collector) collect(list *sealed) error {
	c.forget(list)
	c.sweep(list.artifacts)
	todo := list.artifacts
	if c.claim {
		todo = c.claims(todo)
	}
	if c.again {
		todo = c.missing(todo)
	}
	c.bring(todo)
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortFunc(c.got.Artifacts, func(a, b Artifact) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(c.failed, func(a, b SkippedArtifact) int { return strings.Compare(a.Path, b.Path) })
	if len(c.failed) == 0 {
		return nil
	}
	c.remember()
	err := errors.Join(c.errs...)
	if more := len(c.failed) - len(c.errs); more > 0 {
		err = fmt.Errorf("%w\nand %d more artifacts", err, more)
	}
	if why := context.Cause(c.ctx); why != nil && !errors.Is(err, why) {
		err = fmt.Errorf("%w (%w)", err, why)
	}
	return &CollectError{Got: c.got, Failed: c.failed, Err: err}
}

// sweep removes what an earlier try has left that no other can use: the beginning
// of a large file, too, if it is another one by now.
func (c *collector) sweep(artifacts []rpc.Artifact) {
	if !c.again {
		return
	}
	dir, err := c.staging.Open(".")
	if err != nil {
		return
	}
	defer dir.Close()
	begun := make(map[string]bool)
	for _, a := range artifacts {
		if a.Size >= largeArtifact {
			begun[partName(a)] = true
		}
	}
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if !begun[name] {
			_ = c.staging.RemoveAll(name) // where it cannot be, a file of this try will say so
		}
	}
}

// placedFile has the paths of what an earlier try has brought.
const placedFile = "placed.json"

// remember notes what is here: the next list may be another one.
func (c *collector) remember() {
	paths := make([]string, len(c.got.Artifacts))
	for i, a := range c.got.Artifacts {
		paths[i] = a.Path
	}
	b, err := json.Marshal(paths)
	if err == nil {
		err = c.staging.WriteFile(placedFile, b, 0o640)
	}
	if err != nil {
		c.logf(slog.LevelWarn, "what has been collected is not noted: %v", err)
	}
}

// forget removes what an earlier try has brought and the list does not have any
// more.
func (c *collector) forget(list *sealed) {
	if !c.again {
		return
	}
	var paths []string
	if b, err := c.staging.ReadFile(placedFile); err != nil || json.Unmarshal(b, &paths) != nil {
		return
	}
	listed := make(map[string]bool, len(list.artifacts))
	for _, a := range list.artifacts {
		listed[a.Path] = true
	}
	for _, name := range paths {
		if listed[name] || !isInside(name) {
			continue
		}
		at := filepath.FromSlash(name)
		for err := c.root.Remove(at); err == nil; err = c.root.Remove(at) { // and the directories that nothing else is in
			if at = filepath.Dir(at); at == "." {
				break
			}
		}
	}
}

// foldsNames reports whether a directory takes some names for the same that are
// different ones.
func foldsNames(dir *os.Root) bool {
	const name, upper, decomposed = "name-\u00e9", "NAME-\u00c9", "name-e\u0301"
	if err := dir.Mkdir(name, 0o750); err != nil {
		return true // to be on the safe side
	}
	defer dir.Remove(name)
	for _, other := range [...]string{upper, "NAME-\u00e9", decomposed} {
		if _, err := dir.Lstat(other); err == nil {
			return true
		}
	}
	return false
}

// claims makes an empty file for every artifact, in their order, in a directory
// that keeps them all: what is there already is a file whose name this machine
// takes for the same.
func (c *collector) claims(artifacts []rpc.Artifact) []rpc.Artifact {
	var kept []rpc.Artifact
	for _, a := range artifacts {
		name := filepath.Join("names", filepath.FromSlash(a.Path))
		err := c.claimName(name)
		switch {
		case err == nil:
			kept = append(kept, a)
		case clashes(c.staging, name):
			c.got.Skipped = append(c.got.Skipped, SkippedArtifact{Path: a.Path, Size: a.Size, Reason: "this machine takes its name for that of another artifact"})
		default:
			c.fail(a, c.diskError(err))
		}
	}
	return kept
}

func (c *collector) claimName(name string) error {
	if err := c.staging.MkdirAll(filepath.Dir(name), 0o750); err != nil {
		return err
	}
	f, err := c.staging.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}

// clashes reports whether a file could not be made because there is one that
// this machine takes for the same, or for a directory above it.
func clashes(root *os.Root, name string) bool {
	for at := name; at != "."; at = filepath.Dir(at) {
		if info, err := root.Lstat(at); err == nil {
			return at == name || !info.IsDir()
		}
	}
	return false
}

// missing are the artifacts that an earlier try has not brought.
func (c *collector) missing(artifacts []rpc.Artifact) []rpc.Artifact {
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	here := make([]bool, len(artifacts))
	for i, a := range artifacts {
		group.Go(func() error {
			here[i] = c.isHere(a)
			return nil
		})
	}
	_ = group.Wait() // which none fails
	var missing []rpc.Artifact
	for i, a := range artifacts {
		if here[i] {
			c.have(a)
		} else {
			missing = append(missing, a)
		}
	}
	return missing
}

// isHere reports whether an artifact is in its place, as it was sealed.
func (c *collector) isHere(a rpc.Artifact) bool {
	name := filepath.FromSlash(a.Path)
	info, err := c.root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() || info.Size() != a.Size {
		return false
	}
	f, err := c.root.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	sum := c.summer(a, true)
	_, err = io.CopyBuffer(sum, struct{ io.Reader }{&contextReader{c.ctx, f}}, make([]byte, rangeChunk))
	return err == nil && sum.check() == nil
}

// bring downloads artifacts.
func (c *collector) bring(artifacts []rpc.Artifact) {
	ranges, _ := c.place.sandbox.(rangeReader)
	var small, single, large []rpc.Artifact
	for _, a := range artifacts {
		switch {
		case a.Size >= largeArtifact && ranges != nil:
			large = append(large, a)
		case a.Size <= rpc.MaxPacked:
			small = append(small, a)
		default:
			single = append(single, a)
		}
	}
	if _, near := c.place.sandbox.(*localSandbox); near || len(small) < fewArtifacts {
		single, small = append(single, small...), nil
	}
	var all sync.WaitGroup
	all.Go(func() {
		var group errgroup.Group
		group.SetLimit(archiveStreams)
		for len(small) > 0 {
			n := archiveOf(small)
			batch := small[:n]
			small = small[n:]
			group.Go(func() error {
				c.archive(batch)
				return nil
			})
		}
		_ = group.Wait() // which none fails
	})
	c.singles(single)
	all.Wait()
	// Last, so that where there is no time or room for all, most of them are here.
	for _, a := range large {
		c.done(a, c.large(ranges, a))
	}
}

// archiveOf is how many of the artifacts go into one archive.
func archiveOf(artifacts []rpc.Artifact) int {
	size, names := int64(0), 0
	for n, a := range artifacts {
		size += a.Size
		names += len(a.Path) + 9 // what stands around an argument
		if n > 0 && (n == archiveFiles || size > archiveBytes || names > archiveNames) {
			return n
		}
	}
	return len(artifacts)
}

func (c *collector) singles(artifacts []rpc.Artifact) {
	var group errgroup.Group
	group.SetLimit(singleStreams)
	for _, a := range artifacts {
		group.Go(func() error {
			c.done(a, c.single(a))
			return nil
		})
	}
	_ = group.Wait() // which none fails
}

// done notes what has become of an artifact.
func (c *collector) done(a rpc.Artifact, err error) {
	if err == nil {
		c.lost.Store(0)
		c.have(a)
		return
	}
	if errors.Is(err, context.Canceled) && c.ctx.Err() != nil {
		err = context.Cause(c.ctx) // not that it was broken off, but why
	}
	c.fail(a, err)
	var full *diskFullError
	switch {
	case errors.As(err, &full), errors.Is(err, ErrSandboxGone):
		c.cancel(err)
	case errors.Is(err, errNotAsSealed), errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrProtocol), c.ctx.Err() != nil:
	default:
		if c.lost.Add(1) >= lostInARow {
			c.cancel(fmt.Errorf("%d artifacts in a row have failed, the last: %w", lostInARow, err))
		}
	}
}

// have notes an artifact that is in its place.
func (c *collector) have(a rpc.Artifact) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got.Artifacts = append(c.got.Artifacts, Artifact{Path: a.Path, Size: a.Size, SHA256: a.SHA256, Verified: c.verified(a), Mode: a.Mode, StepID: stepOf(a.Path)})
}

func (c *collector) fail(a rpc.Artifact, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = append(c.failed, SkippedArtifact{Path: a.Path, Size: a.Size, Reason: printableName(clip(err.Error(), maxPathBytes))})
	if len(c.errs) < namedReasons {
		c.errs = append(c.errs, fmt.Errorf("artifact %q: %w", a.Path, cause(err)))
	}
}

// errNotAsSealed: a file is not, or not any more, what the list says.
var errNotAsSealed = errors.New("it is not as it was sealed")

// diskFullError is that of a disk of this machine.
type diskFullError struct {
	dir string
	err error
}

func (e *diskFullError) Error() string {
	return fmt.Sprintf("the disk of this machine that holds %s is full: %v", e.dir, e.err)
}
func (e *diskFullError) Unwrap() error { return e.err }

// diskError is an error of this machine's files, which it names where they have
// no room.
func (c *collector) diskError(err error) error {
	if isDiskFull(err) {
		return &diskFullError{c.dir, cause(err)}
	}
	return err
}

// summer compares what is written to it with what was sealed.
type summer struct {
	hash.Hash // nil where only the size counts
	sum       func() string
	sealed    string
	n, size   int64
}

func (s *summer) Write(b []byte) (int, error) {
	s.n += int64(len(b))
	if s.Hash != nil {
		return s.Hash.Write(b)
	}
	return len(b), nil
}

// check says in what the file differs.
func (s *summer) check() error {
	if s.n != s.size {
		return fmt.Errorf("%w: it was sealed with %d bytes, and has another size now", errNotAsSealed, s.size)
	}
	if s.Hash == nil {
		return nil
	}
	if sum := s.sum(); sum != s.sealed {
		return fmt.Errorf("%w: its hash is %s, it was sealed with %q", errNotAsSealed, sum, s.sealed)
	}
	return nil
}

// verified is how an artifact is compared: a worker may have sealed it without
// XXH3.
func (c *collector) verified(a rpc.Artifact) Verify {
	if c.verify == VerifyXXH3 && a.XXH3 == "" {
		return VerifySHA256
	}
	return c.verify
}

// summer returns what compares an artifact; strictly so also where only its size
// would count.
func (c *collector) summer(a rpc.Artifact, strictly bool) *summer {
	s := &summer{size: a.Size}
	verify := c.verified(a)
	switch {
	case verify == VerifySHA256 || a.XXH3 == "" && strictly:
		s.Hash, s.sealed = sha256.New(), a.SHA256
		s.sum = func() string { return hex.EncodeToString(s.Sum(nil)) }
	case verify == VerifyXXH3 || strictly:
		h := xxh3.New128()
		s.Hash, s.sealed = h, a.XXH3
		s.sum = func() string { return fmt.Sprintf("%x", h.Sum128().Bytes()) }
	}
	return s
}

func (c *collector) remotePath(a rpc.Artifact) string {
	return path.Join(filepath.ToSlash(c.place.dir), "artifacts", a.Path)
}

// stopped returns why no more is to be done.
func (c *collector) stopped() error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	return nil
}

// single downloads an artifact by a request of its own.
func (c *collector) single(a rpc.Artifact) error {
	if err := c.stopped(); err != nil {
		return err
	}
	name := strconv.FormatInt(c.files.Add(1), 10)
	f, err := c.create(name)
	if err != nil {
		return c.diskError(err)
	}
	err = c.copy(a, f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return c.settle(a, name, err)
}

// copy downloads an artifact into a file, and verifies it.
func (c *collector) copy(a rpc.Artifact, f io.Writer) error {
	body, err := c.place.sandbox.Download(c.ctx, c.remotePath(a))
	if err != nil {
		return err
	}
	defer body.Close()
	most := a.Size // a byte more shows that there is more
	if most < math.MaxInt64 {
		most++
	}
	sum := c.summer(a, false)
	w := &splitWriter{file: f, sum: sum}
	buf := make([]byte, min(rangeChunk, max(most, 512)))
	n, err := io.CopyBuffer(w, struct{ io.Reader }{io.LimitReader(body, most)}, buf)
	countReceived(c.ctx, n)
	if err != nil {
		return err
	}
	return sum.check()
}

// splitWriter writes to a file and a hash.
type splitWriter struct {
	file io.Writer
	sum  *summer
}

func (w *splitWriter) Write(b []byte) (int, error) {
	n, err := w.file.Write(b)
	_, _ = w.sum.Write(b[:n]) // which does not fail
	return n, err
}

// settle moves a staged file that is right to where it belongs, and removes any
// other.
func (c *collector) settle(a rpc.Artifact, name string, err error) error {
	if err == nil && a.Mode&0o100 != 0 {
		err = c.staging.Chmod(name, 0o750)
	}
	if err == nil {
		err = c.move(name, filepath.FromSlash(a.Path))
	}
	if err != nil {
		_ = c.staging.Remove(name) // else the next try does
		return c.diskError(err)
	}
	return nil
}

// move puts a staged file in its place.
func (c *collector) move(name, to string) error {
	from := filepath.Join(c.name, name)
	err := c.root.Rename(from, to)
	if err == nil {
		return nil
	}
	if err := c.root.MkdirAll(filepath.Dir(to), 0o750); err != nil {
		return err
	}
	return c.root.Rename(from, to)
}

// partSuffix ends the names of large files that are not whole.
const partSuffix = ".part"

// partName names the beginning of a large file as it was sealed.
func partName(a rpc.Artifact) string {
	key := strings.Join([]string{a.Path, strconv.FormatInt(a.Size, 10), a.SHA256, a.XXH3}, "\x00")
	return fmt.Sprintf("%x", xxh3.HashString128(key).Bytes()) + partSuffix
}

// large downloads an artifact in ranges, behind what an earlier try has of it.
func (c *collector) large(ranges rangeReader, a rpc.Artifact) error {
	if err := c.stopped(); err != nil {
		return err
	}
	name := partName(a)
	f, err := c.create(name)
	if err != nil {
		return c.diskError(err)
	}
	resumed, err := c.appendRest(ranges, a, f)
	if resumed && errors.Is(err, errNotAsSealed) && c.ctx.Err() == nil { // it may be the beginning that is wrong
		if err = f.Truncate(0); err == nil {
			_, err = c.appendRest(ranges, a, f)
		}
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil && !errors.Is(err, errNotAsSealed) {
		return c.diskError(err) // what has come stays for the next try
	}
	return c.settle(a, name, err)
}

// appendRest writes what a file misses, and verifies all of it.
func (c *collector) appendRest(ranges rangeReader, a rpc.Artifact, f stagedFile) (resumed bool, err error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	at := info.Size()
	if at > a.Size {
		at = 0
		if err := f.Truncate(0); err != nil {
			return false, err
		}
	}
	sum := c.summer(a, false)
	buf := make([]byte, rangeChunk)
	if _, err := io.CopyBuffer(sum, struct{ io.Reader }{&contextReader{c.ctx, io.NewSectionReader(f, 0, at)}}, buf); err != nil {
		return at > 0, err
	}
	in := openRanged(c.ctx, ranges, c.remotePath(a), at, a.Size, 0)
	defer in.Close()
	_, err = in.WriteTo(&splitWriter{file: io.NewOffsetWriter(f, at), sum: sum})
	if errors.Is(err, errResized) {
		err = fmt.Errorf("%w: %w", errNotAsSealed, err)
	}
	if err == nil {
		err = sum.check()
	}
	return at > 0, err
}

// archive downloads small artifacts one behind the other, by a process that
// writes them. What does not come so comes by requests of its own.
func (c *collector) archive(batch []rpc.Artifact) {
	for tries := 0; len(batch) > 0 && !c.noPack.Load() && c.stopped() == nil; {
		done, err := c.unpack(batch)
		batch = batch[done:]
		if err == nil {
			continue
		}
		if tries++; done > 0 {
			tries = 1
		}
		var started *startError
		if errors.As(err, &started) || errors.Is(err, errUsage) || errors.Is(err, ErrProtocol) || tries == archiveTries {
			c.noPack.Store(true)
		}
		c.logf(slog.LevelDebug, "artifacts as an archive: %v", err)
	}
	c.singles(batch)
}

// unpack has a process write artifacts, and returns how many of them it is done
// with. An error says why these are not all.
func (c *collector) unpack(batch []rpc.Artifact) (done int, err error) {
	stderr := &lastLines{}
	cmd := tell(c.place, "pack", stderr)
	cmd.Args = append(cmd.Args, "--")
	for _, a := range batch {
		cmd.Args = append(cmd.Args, a.Path)
	}
	proc, err := c.place.sandbox.Start(c.ctx, cmd)
	if err != nil {
		return 0, &startError{err}
	}
	stopping := context.AfterFunc(c.ctx, func() { proc.Stdout().Close() })
	idle := time.AfterFunc(archiveIdle, func() { proc.Stdout().Close() })
	done, err = c.readArchive(&resetReader{c.ctx, proc.Stdout(), idle}, batch)
	stopping()
	idle.Stop()
	proc.Stdin().Close()
	proc.Stdout().Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), archiveGrace)
	defer cancel()
	var status ExitStatus
	if err == nil || errors.Is(err, io.ErrUnexpectedEOF) { // it ends, if it is what it should be
		var waitErr error
		if status, waitErr = proc.Wait(ctx); waitErr != nil {
			c.kill(proc)
		}
	} else {
		c.kill(proc)
	}
	if done == len(batch) {
		return done, nil
	}
	if done == 0 && status.Code == 2 && status.Signal == "" {
		err = errors.Join(errUsage, err)
	}
	return done, fmt.Errorf("%w (%s)", err, rpc.Printable(stderr.String()))
}

// kill ends a process. One that stays goes with the sandbox.
func (c *collector) kill(proc Process) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), archiveGrace)
	defer cancel()
	if proc.Signal(ctx, SignalKill) == nil {
		_, _ = proc.Wait(ctx)
	}
}

// resetReader holds off a timer while something comes, and counts it.
type resetReader struct {
	ctx   context.Context
	r     io.Reader
	timer *time.Timer
}

func (r *resetReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.timer.Reset(archiveIdle)
	countReceived(r.ctx, int64(n))
	return n, err
}

// readArchive takes artifacts out of an archive. It returns how many of them it
// is done with, well or not.
func (c *collector) readArchive(r io.Reader, batch []rpc.Artifact) (done int, err error) {
	in := newArchiveReader(r)
	var storing sync.WaitGroup
	defer storing.Wait()
	free := make(chan []byte, 1+runtime.GOMAXPROCS(0)) // buffers, of which each is a file that is stored
	for range cap(free) {
		free <- nil
	}
	for i, a := range batch {
		buf, failed, err := in.next(i, a.Size, <-free)
		switch {
		case errors.Is(err, errNotAsSealed), failed != "":
			if failed != "" {
				err = fmt.Errorf("%w: %s", errNotAsSealed, clip(failed, rpc.MaxPackedError))
			}
			c.done(a, err)
			free <- buf
			continue
		case err != nil:
			return i, err
		}
		storing.Go(func() {
			c.done(a, c.store(a, buf))
			free <- buf
		})
	}
	return len(batch), nil
}

// store verifies a small artifact and puts it in its place.
func (c *collector) store(a rpc.Artifact, content []byte) error {
	if err := c.stopped(); err != nil {
		return err
	}
	sum := c.summer(a, false)
	_, _ = sum.Write(content) // which does not fail
	if err := sum.check(); err != nil {
		return err
	}
	name := strconv.FormatInt(c.files.Add(1), 10)
	f, err := c.create(name)
	if err != nil {
		return c.diskError(err)
	}
	_, err = f.Write(content)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return c.settle(a, name, err)
}

// archiveReader reads what a process has packed, which may be anything.
type archiveReader struct {
	r      io.Reader
	header [rpc.PackHeaderSize]byte
}

func newArchiveReader(r io.Reader) *archiveReader {
	return &archiveReader{r: bufio.NewReaderSize(r, 256<<10)}
}

// next reads the file that was asked for as the one of an index, into a buffer if
// that is large enough. Text is returned of a file that could not be packed. The
// error matches errNotAsSealed for one of another size, which is skipped.
func (r *archiveReader) next(index int, size int64, buf []byte) (content []byte, failed string, err error) {
	if _, err := io.ReadFull(r.r, r.header[:]); err != nil {
		return buf, "", noEOF(err)
	}
	h, err := rpc.ParsePackHeader(&r.header)
	if err == nil && h.Index != uint32(index) {
		err = fmt.Errorf("file %d comes where %d should", h.Index, index)
	}
	if err != nil {
		return buf, "", &protocolError{fmt.Errorf("archive of artifacts: %w", err)}
	}
	if cap(buf) < int(h.Size) {
		buf = make([]byte, h.Size)
	}
	buf = buf[:h.Size]
	if _, err := io.ReadFull(r.r, buf); err != nil {
		return buf, "", noEOF(err)
	}
	switch {
	case h.Failed:
		return buf, cmp.Or(string(bytes.ToValidUTF8(buf, nil)), "it cannot be read"), nil
	case int64(h.Size) != size:
		return buf, "", fmt.Errorf("%w: it was sealed with %d bytes, and has %d now", errNotAsSealed, size, h.Size)
	}
	return buf, "", nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
