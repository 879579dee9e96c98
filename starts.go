package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/osiris-pipelines/remote/rpc"
)

// StartWay is how a run comes to its worker and its packages.
type StartWay string

// The ways. Which of the two in the middle it is turns out in the sandbox: what
// the wheelhouse holds depends on the interpreter there.
const (
	StartAsIs       StartWay = "as_is"      // the template has all packages, or none are needed; the worker is sent
	StartWheelhouse StartWay = "wheelhouse" // packages are sent from the wheelhouse, and installed
	StartIndex      StartWay = "index"      // packages are installed from an index, and kept in the wheelhouse
	StartDerived    StartWay = "derived"    // a template made for runs like this one has all of it
)

// past is the way of a start that was, for people.
func (w StartWay) past() string {
	switch w {
	case StartWheelhouse:
		return "with packages from the wheelhouse"
	case StartIndex:
		return "with packages from an index"
	case StartDerived:
		return "from a derived template"
	}
	return "from the template as it is"
}

// StartCost is what the start of a run has taken, until its first step could
// begin.
type StartCost struct {
	Way      StartWay  `json:"way"`
	At       time.Time `json:"at"`       // by this machine's clock
	Template string    `json:"template"` // of the sandbox

	UntilFirstStep time.Duration `json:"until_first_step_ns"` // from Execute's beginning on
	Dependencies   time.Duration `json:"dependencies_ns"`     // of it: packages were checked, sent, installed
	Build          time.Duration `json:"build_ns"`            // of it: a template was built, or waited for; zero when it was there
	BytesSent      int64         `json:"bytes_sent"`
	CostUSD        float64       `json:"cost_usd"` // of the sandbox, by Config.Prices: an estimate. What E2B takes for a build is not in it
}

// String is one line, as "with packages from an index: 2.1s until the first step,
// 9.3 MB sent".
func (c StartCost) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s until the first step", c.Way.past(), roundTime(c.UntilFirstStep))
	if c.Dependencies >= time.Millisecond && c.Way != StartAsIs {
		fmt.Fprintf(&b, ", %s of them for packages", roundTime(c.Dependencies))
	}
	if c.Build > 0 {
		fmt.Fprintf(&b, ", %s of them for a build", roundTime(c.Build))
	}
	fmt.Fprintf(&b, ", %s sent, about $%.6f (%s)", megabytes(c.BytesSent), c.CostUSD, c.At.UTC().Format("2006-01-02 15:04"))
	return b.String()
}

// roundTime is for people.
func roundTime(d time.Duration) time.Duration {
	switch {
	case d >= 10*time.Second:
		return d.Round(time.Second)
	case d >= time.Second:
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// startsFile is in the wheelhouse's directory.
const startsFile = "starts.json"

const (
	maxStarts      = 200 // the oldest are forgotten
	maxStartsBytes = 1 << 20
)

// startBook keeps what starts have taken, the last of each way of each
// configuration, and of each way the last that waited for a build, in a file of
// this machine. The file holds hashes, numbers and names of templates. One that
// is damaged counts as empty. Processes may write it at the same time: then one
// of two entries may be lost, and the file is whole. Nil keeps nothing.
type startBook struct {
	file string
	mu   sync.Mutex // of this process's writers
}

// newStartBook is nil where this machine has no place for it.
func newStartBook(dir string) *startBook {
	if dir == "" {
		return nil
	}
	return &startBook{file: filepath.Join(dir, startsFile)}
}

// keptStart is an entry of the file.
type keptStart struct {
	Key string `json:"key"` // of the configuration
	StartCost
}

// id is what it takes the place of, and is replaced by.
func (s *keptStart) id() string { return fmt.Sprint(s.Key, " ", s.Way, " ", s.Build > 0) }

// startsDocument is the file.
type startsDocument struct {
	Starts []keptStart `json:"starts"` // the newest first
}

// note keeps what a start has taken, in the place of the last like it.
func (b *startBook) note(key string, c StartCost) error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	entry := keptStart{key, c}
	kept := slices.DeleteFunc(b.load(), func(s keptStart) bool { return s.id() == entry.id() })
	kept = slices.Insert(kept, 0, entry)
	if err := os.MkdirAll(filepath.Dir(b.file), 0o700); err != nil {
		return err
	}
	return writeJSON(b.file, startsDocument{kept[:min(len(kept), maxStarts)]})
}

// last returns what is kept of a configuration, the newest first.
func (b *startBook) last(key string) []StartCost {
	costs := []StartCost{}
	if b == nil {
		return costs
	}
	for _, s := range b.load() {
		if s.Key == key {
			costs = append(costs, s.StartCost)
		}
	}
	return costs
}

// load reads the file. What is wrong in it is left out.
func (b *startBook) load() []keptStart {
	data, err := readSmall(b.file, maxStartsBytes)
	if err != nil {
		return nil
	}
	var doc startsDocument
	if json.Unmarshal(data, &doc) != nil {
		return nil
	}
	seen := make(map[string]bool)
	return slices.DeleteFunc(doc.Starts, func(s keptStart) bool {
		if !s.sound() || seen[s.id()] {
			return true
		}
		seen[s.id()] = true
		return false
	})
}

// readSmall reads a regular file of at most that many bytes.
func readSmall(name string, most int64) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // a pipe would have us wait
		return nil, errors.New("it is not a regular file")
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("it is larger than %d bytes", most)
	}
	return data, err
}

// sound reports whether an entry is one that note may have written.
func (s *keptStart) sound() bool {
	switch s.Way {
	case StartAsIs, StartWheelhouse, StartIndex, StartDerived:
	default:
		return false
	}
	const longest, dearest = 1000 * time.Hour, 1e6
	for _, d := range []time.Duration{s.UntilFirstStep, s.Dependencies, s.Build} {
		if d < 0 || d > longest {
			return false
		}
	}
	return len(s.Key) <= 64 && len(s.Template) <= 256 && s.Template == rpc.Printable(s.Template) && s.BytesSent >= 0 && s.CostUSD >= 0 && s.CostUSD <= dearest
}

// startCost is what a receipt says when the first step may begin.
func startCost(r *Receipt, pl *place) *StartCost {
	if r == nil {
		return nil
	}
	c := &StartCost{
		Way: pl.way, At: time.Now().UTC().Truncate(time.Second), Template: pl.sandbox.Info().Template,
		UntilFirstStep: r.Wall, Build: r.Phases.Build, Dependencies: r.Phases.Dependencies, BytesSent: r.BytesSent, CostUSD: r.CostUSD,
	}
	if c.Way == "" {
		c.Way = StartAsIs
	}
	if _, derived := derivedAlias([]string{c.Template}); derived && c.Way == StartAsIs {
		c.Way = StartDerived
	}
	return c
}
