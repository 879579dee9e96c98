package remote

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
)

// lineHead is what every line of events.jsonl or metrics.jsonl has. The texts
// are parts of the line, or decoded copies.
type lineHead struct {
	ts, session, name, stepID, unit []byte
	value                           float64 // of a metric
}

// The kinds of lines, by the key that names them.
const (
	eventKey  = "event"
	metricKey = "metric"
)

// parseHead reads the head of a line, which is a valid JSON object. A key of it
// that stands twice, or is no text, is an error: readers would not agree on
// what the line says. Other keys are of no interest, also in other letters,
// which package json would take for the same.
func parseHead(line []byte, kind string) (lineHead, error) {
	var h lineHead
	if kind == eventKey && h.readEvent(line) {
		return h, nil
	}
	h = lineHead{}
	seen := 0
	for i := 1; ; {
		i = skipSpace(line, i)
		if i >= len(line) || line[i] != '"' { // the closing brace
			break
		}
		end := skipText(line, i)
		key, err := textOf(line[i:end])
		if err != nil {
			return h, err
		}
		from := skipSpace(line, skipSpace(line, end)+1)
		i = skipValue(line, from)
		value := line[from:i]
		if i = skipSpace(line, i); i < len(line) && line[i] == ',' {
			i++
		}
		bit := 0
		var to *[]byte
		switch string(key) {
		case "ts":
			bit, to = 1, &h.ts
		case "session":
			bit, to = 2, &h.session
		case kind:
			bit, to = 4, &h.name
		case "step_id":
			bit, to = 8, &h.stepID
		case "unit":
			if kind == metricKey {
				bit, to = 16, &h.unit
			}
		case "value":
			if kind == metricKey {
				bit = 32
				if h.value, err = strconv.ParseFloat(string(value), 64); err != nil && string(value) != "null" {
					return h, fmt.Errorf("%.40q is no number", value)
				}
			}
		}
		if seen&bit != 0 {
			return h, fmt.Errorf("%q stands twice", key)
		}
		seen |= bit
		if to == nil {
			continue
		}
		if value[0] != '"' {
			return h, fmt.Errorf("%q is no text", key)
		}
		if *to, err = textOf(value); err != nil {
			return h, err
		}
	}
	return h, nil
}

// readEvent reads the head of an event as our own worker writes it, and leaves
// all else to parseHead: most of a run's lines are such ones.
func (h *lineHead) readEvent(line []byte) bool {
	if bytes.IndexByte(line, '\\') >= 0 { // then a quote may be a part of a text
		return false
	}
	rest := line
	for _, part := range [...]struct {
		before string
		to     *[]byte
	}{{`{"ts":"`, &h.ts}, {`","session":"`, &h.session}, {`","event":"`, &h.name}, {`","step_id":"`, &h.stepID}} {
		if len(rest) < len(part.before) || string(rest[:len(part.before)]) != part.before {
			return false
		}
		rest = rest[len(part.before):]
		n := bytes.IndexByte(rest, '"')
		if n < 0 {
			return false
		}
		*part.to, rest = rest[:n], rest[n:]
	}
	rest = rest[1:]
	for { // texts, be they keys or values
		from := bytes.IndexByte(rest, '"') + 1
		if from == 0 {
			return true
		}
		n := bytes.IndexByte(rest[from:], '"')
		if n < 0 {
			return false
		}
		switch string(rest[from : from+n]) {
		case "ts", "session", "event", "step_id":
			return false
		}
		rest = rest[from+n+1:]
	}
}

// textOf returns what a JSON string says.
func textOf(b []byte) ([]byte, error) {
	if bytes.IndexByte(b, '\\') < 0 {
		return b[1 : len(b)-1], nil
	}
	var s string
	err := json.Unmarshal(b, &s)
	return []byte(s), err
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// skipText returns the index behind the string that starts at i.
func skipText(b []byte, i int) int {
	for i++; i < len(b); {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return len(b)
		}
		slash := bytes.IndexByte(b[i:i+n], '\\')
		if slash < 0 {
			return i + n + 1
		}
		i += slash + 2
	}
	return len(b)
}

// skipValue returns the index behind the value that starts at i.
func skipValue(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			i = skipText(b, i)
			if depth == 0 {
				return i
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i // of what it stands in
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return i
			}
		}
		i++
	}
	return len(b)
}

// isHosts reports whether a line of this name, of no step, is the host's alone to
// write: what became of the run and its sandbox is not for the worker to say.
// That of the reference implementation has others.
func isHosts(name, kind string) bool {
	switch name {
	case "run_complete", "run_error", "run_end", "collect_start", "collect_complete", "collect_error",
		"worker_started", "worker_restarted", "worker_silent", "lines_dropped",
		"sandbox_created", "sandbox_inputs_uploaded", "sandbox_waiting", "sandbox_admitted", "retry", "lease_in_danger", "lease_lost",
		"network_limited", "network_not_limited", "connection_resolve_start", "connection_resolve_complete", "connection_refreshed":
		return kind == eventKey
	case "execution_duration", "artifacts_bytes_total", "artifacts_files_total", "artifacts_copy_ms":
		return kind == metricKey
	}
	return false
}

// checkLine refuses a line in which a worker says what is not its own to say:
// lines of another session, of steps that there are not, and those of the host.
// essential reports whether it tells what became of a step.
func (l *link) checkLine(line []byte, kind string) (essential bool, err error) {
	if l.steps == nil {
		l.steps = make(map[string]bool)
		for _, step := range l.plan.Steps {
			l.steps[step.ID] = true
		}
	}
	h, err := parseHead(line, kind)
	switch {
	case err != nil:
		return false, fmt.Errorf("%s: %w", kind, err)
	case string(h.session) != l.session.id:
		return false, fmt.Errorf("%s %.40q is of the session %.200q", kind, h.name, h.session)
	case len(h.stepID) == 0:
		if isHosts(string(h.name), kind) {
			return false, fmt.Errorf("%s %q is the host's to write", kind, h.name)
		}
		return false, nil
	case !l.steps[string(h.stepID)]:
		return false, fmt.Errorf("%s %.40q is of the step %.200q, which the run has not got", kind, h.name, h.stepID)
	}
	switch string(h.name) {
	case "step_start", "step_complete", "step_failed":
		essential = kind == eventKey
	}
	return essential, nil
}
