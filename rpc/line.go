package rpc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// Line is one line of events.jsonl or metrics.jsonl, as both ends write it:
//
//	{"ts":"2026-01-02T03:04:05.000006Z","session":"s","event":"step_start","step_id":"a",...fields by name}
//	{"ts":"2026-01-02T03:04:05.000006Z","session":"s","metric":"rows_read","value":5,"unit":"rows","step_id":"a","tags":{"step":"a"}}
//
// The names are those of the reference implementation's files.
type Line struct {
	Time    time.Time
	Session string
	Name    string // of the event or the metric
	StepID  string // empty for what belongs to the run
}

// maxLine leaves room for the envelope around it.
const maxLine = MaxPayload - 64

// AppendEvent appends an event's line, without a newline. Fields named ts,
// session, event or step_id are dropped: the line has them already. A field
// that JSON cannot express is replaced by its Go syntax; a line above 1 MiB by
// one whose only field is the number of bytes it had, "oversize_bytes".
func (l Line) AppendEvent(dst []byte, fields map[string]any) []byte {
	start := len(dst)
	dst = l.head(dst, "event")
	if l.StepID != "" {
		dst = appendString(append(dst, `,"step_id":`...), l.StepID)
	}
	head := len(dst)
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		switch k {
		case "ts", "session", "event":
			continue
		case "step_id":
			if l.StepID != "" {
				continue
			}
		}
		dst = append(dst, ',')
		dst = appendString(dst, k)
		dst = append(dst, ':')
		dst = appendValue(dst, fields[k])
	}
	if size := len(dst) - start; size > maxLine {
		dst = append(dst[:head], `,"oversize_bytes":`...)
		dst = strconv.AppendInt(dst, int64(size), 10)
	}
	return append(dst, '}')
}

// AppendMetric appends a metric's line, without a newline. A value that JSON
// has no number for (NaN, infinities) is written as null.
func (l Line) AppendMetric(dst []byte, value float64, unit string) []byte {
	dst = l.head(dst, "metric")
	dst = append(dst, `,"value":`...)
	dst = appendFloat(dst, value)
	if unit != "" {
		dst = appendString(append(dst, `,"unit":`...), unit)
	}
	if l.StepID != "" {
		dst = appendString(append(dst, `,"step_id":`...), l.StepID)
		dst = appendString(append(dst, `,"tags":{"step":`...), l.StepID)
		dst = append(dst, '}')
	}
	return append(dst, '}')
}

func (l Line) head(dst []byte, kind string) []byte {
	dst = append(dst, `{"ts":"`...)
	dst = l.Time.UTC().AppendFormat(dst, TimeFormat)
	dst = append(dst, `","session":`...)
	dst = appendString(dst, l.Session)
	dst = append(dst, `,"`...)
	dst = append(dst, kind...)
	dst = append(dst, `":`...)
	return appendString(dst, l.Name)
}

// TimeFormat is how times are written: ISO 8601, UTC, microseconds.
const TimeFormat = "2006-01-02T15:04:05.000000Z07:00"

func appendValue(dst []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(dst, "null"...)
	case string:
		return appendString(dst, v)
	case bool:
		return strconv.AppendBool(dst, v)
	case int:
		return strconv.AppendInt(dst, int64(v), 10)
	case int64:
		return strconv.AppendInt(dst, v, 10)
	case float64:
		return appendFloat(dst, v)
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return appendString(dst, fmt.Sprintf("%+v", v))
	}
	return append(dst, bytes.TrimRight(buf.Bytes(), "\n")...)
}

func appendFloat(dst []byte, v float64) []byte {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return append(dst, "null"...)
	}
	if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
		return strconv.AppendInt(dst, int64(v), 10)
	}
	return strconv.AppendFloat(dst, v, 'g', -1, 64)
}

// appendString appends s as a JSON string. Bytes that are not UTF-8 become
// the replacement character.
func appendString(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			return appendEscaped(dst, s)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

func appendEscaped(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r == '\n':
			dst = append(dst, '\\', 'n')
		case r == '\r':
			dst = append(dst, '\\', 'r')
		case r == '\t':
			dst = append(dst, '\\', 't')
		case r < ' ':
			dst = append(dst, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		case r == '\u2028' || r == '\u2029': // line ends to some readers of JSON lines
			dst = append(dst, `\u202`...)
			dst = append(dst, hex[r&15])
		default:
			dst = utf8.AppendRune(dst, r)
		}
	}
	return append(dst, '"')
}
