package mock

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Script is what happens to the connections of a [Proxy], and when. Its text,
// of [Script.String] and [ParseScript], is a step a line:
//
//	after 4096 down in "-follow=": reset
//	before 3 "OSR1" down +2: close
//	every 100000 down: reset all
//	at 1s: freeze up all for 5s
//
// A step is a time, a colon and an action. The times are
//
//	at DURATION
//	after BYTES up|down [in "TEXT"]
//	every BYTES up|down [in "TEXT"]
//	before N "TEXT" up|down [+BYTES] [in "TEXT"]
//
// and the actions, of which [Deed] says what they do,
//
//	reset|close [all]
//	freeze|stall|release [up|down] [all] [for DURATION]
//	slow BYTES-PER-SECOND [up|down] [all] [for DURATION]
//	delay DURATION [up|down] [all] [for DURATION]
//	refuse for DURATION
//
// So a script that has found something can be kept, and run again. Empty lines
// and those that begin with "#" are ignored.
type Script []ScriptStep

// ScriptStep is an action and its time: one of At, After, Every and Before.
type ScriptStep struct {
	// At is when, counted from the start of the proxy.
	At time.Duration

	// After is when so many bytes went in direction Dir, over all connections.
	After int64

	// Every is as After, and again whenever as many more went.
	Every int64

	// Before is when the Before-th occurrence of Text in direction Dir, counted
	// from 1 over all connections, is about to go on. Plus of its bytes, and of
	// those behind it, go before the action.
	Before int
	Text   string
	Plus   int64

	Dir Direction // of what is counted: Up or Down

	// In restricts the step to connections on which this text went up, and to
	// what went after it. A connection of HTTP carries one request after the
	// other, so this is how a certain request is met; a program that is
	// uploaded has many texts in it, too.
	In string

	Action Action
}

// Direction is one of a connection's.
type Direction string

// The directions. An empty one, of an action, means both.
const (
	Up   Direction = "up"   // from the client to the server
	Down Direction = "down" // from the server to the client
)

// Action is something that is done to connections: to the one that has the
// bytes which a step counts, else to all, see [Proxy.Do].
type Action struct {
	Do  Deed
	Dir Direction     // of Freeze, Stall, Slow and Delay; empty means both
	All bool          // to all connections
	For time.Duration // until it is undone; zero means never. Refuse needs it

	Rate  int           // of Slow, in bytes a second
	Delay time.Duration // of Delay, for each piece
}

// Deed is what an [Action] does.
type Deed string

// The deeds.
const (
	// Reset ends both ends with a TCP reset, which takes along what is still on
	// its way.
	Reset Deed = "reset"
	// CloseConn ends both ends orderly (FIN), where they are.
	CloseConn Deed = "close"
	// Freeze takes bytes and holds them, as a network does that is gone: 16 MiB,
	// and then takes none. Neither end hears of the other's end either. When it
	// is undone, they go on: late, and after what went over other connections.
	Freeze Deed = "freeze"
	// Stall takes no more bytes.
	Stall Deed = "stall"
	// Slow lets Rate bytes a second through.
	Slow Deed = "slow"
	// Delay holds each piece up.
	Delay Deed = "delay"
	// Release undoes Freeze, Stall, Slow and Delay.
	Release Deed = "release"
	// Refuse resets new connections, for a while. Those that there are stay.
	Refuse Deed = "refuse"
)

// ErrScript is matched by the errors of a script that makes no sense.
var ErrScript = errors.New("invalid script")

// RandomCuts makes a script of n resets, at places chosen by a seed among the
// first total bytes that go down after the text in: the same ones for the same
// seed.
func RandomCuts(seed uint64, n int, total int64, in string) Script {
	r := rand.New(rand.NewPCG(seed, 0))
	s := make(Script, n)
	for i := range s {
		s[i] = ScriptStep{After: 1 + r.Int64N(max(total, 1)), Dir: Down, In: in, Action: Action{Do: Reset}}
	}
	slices.SortFunc(s, func(a, b ScriptStep) int { return int(min(1, max(-1, a.After-b.After))) })
	return s
}

// String returns the script as [ParseScript] reads it.
func (s Script) String() string {
	var b strings.Builder
	for _, step := range s {
		b.WriteString(step.String() + "\n")
	}
	return b.String()
}

// String returns the step as it stands in a script.
func (s ScriptStep) String() string {
	var b strings.Builder
	switch {
	case s.After > 0:
		fmt.Fprintf(&b, "after %d %s", s.After, s.Dir)
	case s.Every > 0:
		fmt.Fprintf(&b, "every %d %s", s.Every, s.Dir)
	case s.Before > 0:
		fmt.Fprintf(&b, "before %d %q %s", s.Before, s.Text, s.Dir)
		if s.Plus > 0 {
			fmt.Fprintf(&b, " +%d", s.Plus)
		}
	default:
		fmt.Fprintf(&b, "at %s", s.At)
	}
	if s.In != "" {
		fmt.Fprintf(&b, " in %q", s.In)
	}
	return b.String() + ": " + s.Action.String()
}

// String returns the action as it stands in a script.
func (a Action) String() string {
	b := string(a.Do)
	switch a.Do {
	case Slow:
		b += fmt.Sprintf(" %d", a.Rate)
	case Delay:
		b += " " + a.Delay.String()
	}
	if a.Dir != "" {
		b += " " + string(a.Dir)
	}
	if a.All {
		b += " all"
	}
	if a.For > 0 {
		b += " for " + a.For.String()
	}
	return b
}

// ParseScript reads a script. The error matches [ErrScript].
func ParseScript(text string) (Script, error) {
	var s Script
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		step, err := parseStep(line)
		if err != nil {
			return nil, fmt.Errorf("mock: line %d: %w: %w", n, ErrScript, err)
		}
		s = append(s, step)
	}
	return s, nil
}

// words are what is left of a line.
type words struct{ rest []string }

// split cuts a line at its blanks, quoted texts being one word, and the colon.
func split(line string) (*words, error) {
	w := &words{}
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimLeft(line, " \t") {
		word := line
		if line[0] == '"' {
			quoted, err := strconv.QuotedPrefix(line)
			if err != nil {
				return nil, fmt.Errorf("a quote without an end in %q", line)
			}
			word = quoted
		} else if i := strings.IndexAny(line, " \t:"); i > 0 {
			word = line[:i]
		} else if i == 0 {
			word = line[:1]
		}
		w.rest = append(w.rest, word)
		line = line[len(word):]
	}
	return w, nil
}

func (w *words) next() string {
	if len(w.rest) == 0 {
		return ""
	}
	word := w.rest[0]
	w.rest = w.rest[1:]
	return word
}

// take takes the next word if it is this one.
func (w *words) take(word string) bool {
	if len(w.rest) == 0 || w.rest[0] != word {
		return false
	}
	w.next()
	return true
}

func (w *words) number() (int64, error) {
	word := w.next()
	n, err := strconv.ParseInt(word, 10, 64)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%q is not a number above zero", word)
	}
	return n, nil
}

func (w *words) text() (string, error) {
	word := w.next()
	text, err := strconv.Unquote(word)
	if err != nil || word[0] != '"' || text == "" {
		return "", fmt.Errorf("%q is not a quoted text", word)
	}
	return text, nil
}

func (w *words) duration() (time.Duration, error) {
	word := w.next()
	d, err := time.ParseDuration(word)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a time as 1s", word)
	}
	return d, nil
}

func (w *words) direction() Direction {
	for _, d := range []Direction{Up, Down} {
		if w.take(string(d)) {
			return d
		}
	}
	return ""
}

func parseStep(line string) (ScriptStep, error) {
	var s ScriptStep
	w, err := split(line)
	if err != nil {
		return s, err
	}
	switch when := w.next(); when {
	case "at":
		s.At, err = w.duration()
	case "after":
		s.After, err = w.number()
		s.Dir = w.direction()
	case "every":
		s.Every, err = w.number()
		s.Dir = w.direction()
	case "before":
		var n int64
		if n, err = w.number(); err == nil {
			s.Before = int(n)
			s.Text, err = w.text()
		}
		s.Dir = w.direction()
		if err == nil && len(w.rest) > 0 && strings.HasPrefix(w.rest[0], "+") {
			w.rest[0] = w.rest[0][1:]
			s.Plus, err = w.number()
		}
	default:
		err = fmt.Errorf("%q is no time: at, after, every or before", when)
	}
	if err == nil && w.take("in") {
		s.In, err = w.text()
	}
	if err != nil {
		return s, err
	}
	if !w.take(":") {
		if len(w.rest) > 0 {
			return s, fmt.Errorf("%q is not understood; a colon and an action follow the time", w.rest[0])
		}
		return s, fmt.Errorf("no colon and action after the time: %q", line)
	}
	if s.Action, err = parseAction(w); err != nil {
		return s, err
	}
	return s, s.check()
}

func parseAction(w *words) (Action, error) {
	a := Action{Do: Deed(w.next())}
	var err error
	switch a.Do {
	case Slow:
		var n int64
		n, err = w.number()
		a.Rate = int(n)
	case Delay:
		a.Delay, err = w.duration()
	}
	if err != nil {
		return a, err
	}
	a.Dir = w.direction()
	a.All = w.take("all")
	if w.take("for") {
		if a.For, err = w.duration(); err != nil {
			return a, err
		}
	}
	if len(w.rest) > 0 {
		return a, fmt.Errorf("%q is too much", strings.Join(w.rest, " "))
	}
	return a, nil
}

// check refuses what makes no sense.
func (s ScriptStep) check() error {
	times := 0
	for _, set := range []bool{s.At > 0, s.After > 0, s.Every > 0, s.Before > 0} {
		if set {
			times++
		}
	}
	counts := s.After > 0 || s.Every > 0 || s.Before > 0
	switch {
	case times > 1:
		return errors.New("more than one time")
	case s.At < 0 || s.After < 0 || s.Every < 0 || s.Before < 0 || s.Plus < 0:
		return errors.New("a number below zero")
	case counts && s.Dir != Up && s.Dir != Down:
		return errors.New("bytes are counted up or down")
	case s.Before > 0 && s.Text == "":
		return errors.New("no text to wait for")
	}
	return s.Action.check()
}

func (a Action) check() error {
	switch a.Do {
	case Reset, CloseConn, Freeze, Stall, Release:
	case Slow:
		if a.Rate <= 0 {
			return errors.New("slow needs a rate")
		}
	case Delay:
		if a.Delay <= 0 {
			return errors.New("delay needs a time")
		}
	case Refuse:
		if a.For <= 0 {
			return errors.New("refuse needs a time")
		}
	default:
		return fmt.Errorf("%q is no action", a.Do)
	}
	if a.Dir != "" && a.Dir != Up && a.Dir != Down {
		return fmt.Errorf("%q is no direction", a.Dir)
	}
	return nil
}

// matcher finds a text in bytes that come in pieces.
type matcher struct {
	text string
	fail []int // of Knuth, Morris and Pratt
	at   int   // how much of text has been seen
}

func newMatcher(text string) matcher {
	m := matcher{text: text, fail: make([]int, len(text))}
	for i, k := 1, 0; i < len(text); i++ {
		for k > 0 && text[i] != text[k] {
			k = m.fail[k-1]
		}
		if text[i] == text[k] {
			k++
		}
		m.fail[i] = k
	}
	return m
}

// next returns where in b the next occurrence ends, or -1 when it does not end
// there.
func (m *matcher) next(b []byte) int {
	for i := 0; i < len(b); i++ {
		if m.at == 0 { // uploads are long, and hold nothing of it
			k := bytes.IndexByte(b[i:], m.text[0])
			if k < 0 {
				return -1
			}
			i += k
		}
		c := b[i]
		for m.at > 0 && c != m.text[m.at] {
			m.at = m.fail[m.at-1]
		}
		if c == m.text[m.at] {
			m.at++
		}
		if m.at == len(m.text) {
			m.at = m.fail[m.at-1]
			return i + 1
		}
	}
	return -1
}
