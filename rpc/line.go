package rpc

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
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

const (
	// maxLine leaves room for the envelope around it.
	maxLine = MaxPayload - 64

	// maxName is how much of a name is kept. However it is escaped, the names
	// of a line fit into it.
	maxName = 16 << 10

	// maxDepth is how deep a field's maps and lists may be nested.
	maxDepth = 100
)

// AppendEvent appends an event's line, without a newline. Fields named ts,
// session, event or step_id are dropped: the line has them already (a run's
// event, whose StepID is empty, keeps a field step_id).
//
// Whatever the fields hold, the line is one line of valid JSON of at most
// 1 MiB. NaN and infinities are written as null, an error as its text, and what
// JSON cannot express as a string that names its type and says why. A line that
// would be longer has one field only, "oversize_bytes", which is about the
// number of bytes it would have had; names above 16 KiB are cut.
func (l Line) AppendEvent(dst []byte, fields map[string]any) []byte {
	start := len(dst)
	dst = l.head(dst, `,"event":`)
	if l.StepID != "" {
		dst = appendString(append(dst, `,"step_id":`...), clip(l.StepID))
	}
	head := len(dst)
	var few [16]field // so that sorting an ordinary event's fields allocates nothing
	sorted := few[:0]
	for k, v := range fields {
		sorted = append(sorted, field{k, v})
		for i := len(sorted) - 1; i > 0 && i < len(few) && k < sorted[i-1].name; i-- {
			sorted[i-1], sorted[i] = sorted[i], sorted[i-1]
		}
	}
	if len(sorted) > len(few) {
		slices.SortFunc(sorted, func(a, b field) int { return strings.Compare(a.name, b.name) })
	}
	limit := start + maxLine - 1 // for the closing brace
	dropped := 0                 // bytes that are no longer in dst, once the line is too long
	for _, f := range sorted {
		switch f.name {
		case "ts", "session", "event":
			continue
		case "step_id":
			if l.StepID != "" {
				continue
			}
		}
		if n := len(f.name) + textLen(f.value); len(dst)+n > limit {
			dropped += len(dst) - head + n
			dst = dst[:head]
			continue
		}
		dst = append(dst, ',')
		dst = appendString(dst, f.name)
		dst = append(dst, ':')
		dst = appendValue(dst, f.value, 0)
		if len(dst) > limit {
			dropped += len(dst) - head
			dst = dst[:head]
		}
	}
	if dropped > 0 {
		dropped += len(dst) - start
		dst = append(dst[:head], `,"oversize_bytes":`...)
		dst = strconv.AppendInt(dst, int64(dropped), 10)
		if cap(dst)-len(dst) > 4*MaxPayload {
			dst = slices.Clone(dst) // lets go of what the long line took
		}
	}
	return append(dst, '}')
}

// LineKeys returns the keys of an event's line, or of a metric's
// ([FrameMetric]), whose values a driver has no part in, or which were looked at
// before: what redacts a line leaves them alone. An event's fields may be called
// as the others of a metric are.
func LineKeys(kind FrameType) []string {
	if kind == FrameMetric {
		return []string{"ts", "session", "metric", "value", "unit", "step_id", "tags"}
	}
	return []string{"ts", "session", "event", "step_id"}
}

type field struct {
	name  string
	value any
}

// textLen returns the length of a field that is one text, without writing it.
func textLen(v any) int {
	switch v := v.(type) {
	case string:
		return len(v)
	case []byte:
		return len(v)
	case json.RawMessage:
		return len(v)
	}
	return 0
}

// clip cuts a name to maxName bytes.
func clip(s string) string {
	if len(s) <= maxName {
		return s
	}
	n := maxName
	for n > maxName-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// AppendMetric appends a metric's line, without a newline. A value that JSON
// has no number for (NaN, infinities) is written as null.
func (l Line) AppendMetric(dst []byte, value float64, unit string) []byte {
	dst = l.head(dst, `,"metric":`)
	dst = append(dst, `,"value":`...)
	dst = appendFloat(dst, value)
	if unit != "" {
		dst = appendString(append(dst, `,"unit":`...), clip(unit))
	}
	if l.StepID != "" {
		step := clip(l.StepID)
		dst = appendString(append(dst, `,"step_id":`...), step)
		dst = appendString(append(dst, `,"tags":{"step":`...), step)
		dst = append(dst, '}')
	}
	return append(dst, '}')
}

// head appends what every line starts with, up to the name behind kind.
func (l Line) head(dst []byte, kind string) []byte {
	dst = append(dst, `{"ts":"`...)
	dst = appendTime(dst, l.Time)
	dst = append(dst, `","session":`...)
	dst = appendString(dst, clip(l.Session))
	dst = append(dst, kind...)
	return appendString(dst, clip(l.Name))
}

// TimeFormat is how times are written: ISO 8601, UTC, microseconds.
const TimeFormat = "2006-01-02T15:04:05.000000Z07:00"

// appendTime appends t in TimeFormat. Every event has one, and package time
// takes several times as long for it.
func appendTime(dst []byte, t time.Time) []byte {
	const day, year10000 = 24 * 60 * 60, 253402300800
	sec := t.Unix()
	if sec < 0 || sec >= year10000 {
		return t.UTC().AppendFormat(dst, TimeFormat)
	}
	year, month, dayOfMonth := civil(int(sec / day))
	hour, minute, second := int(sec%day/3600), int(sec%3600/60), int(sec%60)
	micro := t.Nanosecond() / 1000
	var text [27]byte
	copy(text[:], "0000-00-00T00:00:00.000000Z")
	put2(text[0:], year/100)
	put2(text[2:], year%100)
	put2(text[5:], month)
	put2(text[8:], dayOfMonth)
	put2(text[11:], hour)
	put2(text[14:], minute)
	put2(text[17:], second)
	put2(text[20:], micro/10_000)
	put2(text[22:], micro/100%100)
	put2(text[24:], micro%100)
	return append(dst, text[:]...)
}

// civil returns the date of a day, counted from 1970-01-01.
//
// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms",
// civil_from_days.
func civil(days int) (year, month, day int) {
	days += 719468 // from 0000-03-01
	era := days / 146097
	ofEra := days % 146097
	yearOfEra := (ofEra - ofEra/1460 + ofEra/36524 - ofEra/146096) / 365
	ofYear := ofEra - (365*yearOfEra + yearOfEra/4 - yearOfEra/100)
	month = (5*ofYear + 2) / 153 // from March
	day = ofYear - (153*month+2)/5 + 1
	year = yearOfEra + era*400
	if month += 3; month > 12 {
		month -= 12
		year++
	}
	return year, month, day
}

// put2 writes a number below 100.
func put2(b []byte, n int) {
	b[0], b[1] = byte('0'+n/10), byte('0'+n%10)
}

// appendValue appends a value of a field. Maps and lists of any are walked
// here, so that one odd value in them does not cost the others.
func appendValue(dst []byte, v any, depth int) []byte {
	switch v := v.(type) {
	case nil:
		return append(dst, "null"...)
	case string:
		return appendString(dst, v)
	case bool:
		return strconv.AppendBool(dst, v)
	case int:
		return strconv.AppendInt(dst, int64(v), 10)
	case int32:
		return strconv.AppendInt(dst, int64(v), 10)
	case int64:
		return strconv.AppendInt(dst, v, 10)
	case uint64:
		return strconv.AppendUint(dst, v, 10)
	case float64:
		return appendFloat(dst, v)
	case float32:
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return append(dst, "null"...)
		}
	case map[string]any:
		switch {
		case v == nil:
			return append(dst, "null"...)
		case depth >= maxDepth:
			return appendString(dst, "nested too deeply")
		}
		dst = append(dst, '{')
		for i, k := range slices.Sorted(maps.Keys(v)) {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(appendString(dst, k), ':')
			dst = appendValue(dst, v[k], depth+1)
		}
		return append(dst, '}')
	case []any:
		switch {
		case v == nil:
			return append(dst, "null"...)
		case depth >= maxDepth:
			return appendString(dst, "nested too deeply")
		}
		dst = append(dst, '[')
		for i, e := range v {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendValue(dst, e, depth+1)
		}
		return append(dst, ']')
	}

	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		if text, ok := errorText(v); ok {
			return appendString(dst, text)
		}
		return appendString(dst, fmt.Sprintf("%T: %v", v, err))
	}
	if text, ok := errorText(v); ok && buf.String() == "{}\n" { // most errors have no exported field
		return appendString(dst, text)
	}
	// What a MarshalJSON returned has not been through json's escaping.
	text := bytes.TrimRight(buf.Bytes(), "\n")
	if !utf8.Valid(text) {
		text = bytes.ToValidUTF8(text, []byte("\ufffd"))
	}
	return append(dst, EscapeControls(text)...)
}

// errorText returns the text of an error; a method that panics, as on a nil
// pointer, gives what package fmt makes of it.
func errorText(v any) (string, bool) {
	err, ok := v.(error)
	if !ok {
		return "", false
	}
	return fmt.Sprintf("%v", err), true
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
	start, end := len(dst), len(dst)+len(s)+2
	dst = slices.Grow(dst, len(s)+2)[:end]
	copy(dst[start+1:], s)
	if !isPlain(dst[start+1 : end-1]) {
		return appendEscaped(dst[:start], s)
	}
	dst[start], dst[end-1] = '"', '"'
	return dst
}

// isPlain reports whether b is ASCII that needs no escapes in a JSON string.
func isPlain(b []byte) bool {
	n := len(b)
	switch {
	case n >= 8:
		for i := 0; i+8 < n; i += 8 {
			if !plain8(binary.LittleEndian.Uint64(b[i:])) {
				return false
			}
		}
		return plain8(binary.LittleEndian.Uint64(b[n-8:])) // overlaps those before
	case n >= 4:
		return plain8(uint64(binary.LittleEndian.Uint32(b)) | uint64(binary.LittleEndian.Uint32(b[n-4:]))<<32)
	}
	for _, c := range b {
		if c < ' ' || c == '"' || c == '\\' || c >= 0x7f {
			return false
		}
	}
	return true
}

// plain8 is isPlain for eight bytes.
func plain8(x uint64) bool {
	return ((x-lowBits*' ')|((x^lowBits*'"')-lowBits)|((x^lowBits*'\\')-lowBits)|x|(x+lowBits))&highBits == 0
}

func appendEscaped(dst []byte, s string) []byte {
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
		case isUnsafe(r): // also what JSON lets stand, and a terminal obeys
			dst = append(dst, '\\', 'u', hexDigits[r>>12], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
		default:
			dst = utf8.AppendRune(dst, r)
		}
	}
	return append(dst, '"')
}
