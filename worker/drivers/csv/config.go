package csv

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/osiris-pipelines/remote/worker"
	"github.com/osiris-pipelines/remote/worker/drivers/internal/filesystem"
)

// config reads a step's config key by key and remembers what was asked for.
// The first wrong value is kept as the error.
type config struct {
	values map[string]any
	read   map[string]bool
	err    error
}

func newConfig(values map[string]any) *config {
	return &config{values: values, read: make(map[string]bool)}
}

// get returns a value; null is the same as absent.
func (c *config) get(key string) (any, bool) {
	c.read[key] = true
	v := c.values[key]
	return v, v != nil
}

func (c *config) fail(key, want string, have any) {
	if c.err == nil {
		c.err = fmt.Errorf("config key %q: want %s, have %s", key, want, describe(have))
	}
}

func describe(v any) string {
	switch v := v.(type) {
	case string:
		return strconv.Quote(v)
	case []any, []string:
		return "a list"
	case map[string]any:
		return "a mapping"
	default:
		return fmt.Sprint(v)
	}
}

func (c *config) str(key, def string) string {
	v, ok := c.get(key)
	if !ok {
		return def
	}
	s, ok := v.(string)
	if !ok {
		c.fail(key, "text", v)
	}
	return s
}

func (c *config) oneOf(key, def string, allowed ...string) string {
	s := c.str(key, def)
	if c.err == nil && !slices.Contains(allowed, s) {
		c.fail(key, "one of "+strings.Join(allowed, ", "), s)
	}
	return s
}

// char reads a one-byte setting; zero when it is absent or empty.
func (c *config) char(key, def string) byte {
	s := c.str(key, def)
	if s == "" {
		if key == "delimiter" {
			c.fail(key, "one character", s)
		}
		return 0
	}
	if len(s) > 1 || s[0] >= 0x80 || s == "\n" || s == "\r" || s == `"` || s == "\x00" {
		c.fail(key, "one ASCII character, not a quote or a line end", s)
	}
	return s[0]
}

func (c *config) flag(key string, def bool) bool {
	v, ok := c.get(key)
	if !ok {
		return def
	}
	b, ok := v.(bool)
	if !ok {
		c.fail(key, "true or false", v)
	}
	return b
}

func (c *config) integer(key string, def, least int64) int64 {
	v, ok := c.get(key)
	if !ok {
		return def
	}
	n, ok := toInt(v)
	if !ok || n < least {
		c.fail(key, fmt.Sprintf("an integer of at least %d", least), v)
	}
	return n
}

func (c *config) list(key string) []any {
	v, ok := c.get(key)
	if !ok {
		return nil
	}
	switch v := v.(type) {
	case []any:
		return v
	case []string:
		list := make([]any, len(v))
		for i, s := range v {
			list[i] = s
		}
		return list
	case string, json.Number, float64, int, int64:
		return []any{v}
	}
	c.fail(key, "a list", v)
	return nil
}

// ignore marks keys that need not be reported.
func (c *config) ignore(keys ...string) {
	for _, k := range keys {
		c.read[k] = true
	}
}

func (c *config) logUnknown(log *slog.Logger) {
	for _, key := range slices.Sorted(maps.Keys(c.values)) {
		if !c.read[key] {
			log.Debug("config key ignored", "key", key)
		}
	}
}

func toInt(v any) (int64, bool) {
	switch v := v.(type) {
	case int:
		return int64(v), true
	case int64:
		return v, true
	case float64:
		return int64(v), v == math.Trunc(v) && math.Abs(v) < 1<<53
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n, true
		}
		f, err := v.Float64()
		return int64(f), err == nil && f == math.Trunc(f) && math.Abs(f) < 1<<53
	}
	return 0, false
}

// extractConfig is the extractor's config, decoded.
type extractConfig struct {
	path        string
	encoding    string
	charset     charset
	compression string
	dialect     dialect
	header      int64    // row of the header; -1: none
	columns     []string // nil: all
	limit       int64    // -1: none
	dates       []any    // names, or positions
	dtype       map[string]*dtype
	anyType     *dtype // for all columns
	na          *naSet
	chunk       int64
}

func decodeExtract(step *worker.Step) (*extractConfig, error) {
	c := newConfig(step.Config)
	c.ignore("path", "resolved_connection") // inputPath reads them
	path, err := filesystem.InputPath(step.Config)
	if err != nil {
		return nil, err
	}
	for _, connection := range []string{step.Connection, c.str("connection", "")} {
		if connection != "" && step.Config["resolved_connection"] == nil {
			return nil, fmt.Errorf("config key %q: connections are not resolved by this version; give the whole path instead of %s, or its base_dir under %q",
				"connection", connection, "resolved_connection")
		}
	}
	cfg := &extractConfig{
		path:        path,
		encoding:    c.str("encoding", "utf-8"),
		compression: c.oneOf("compression", "infer", "infer", "gzip", "bz2", "zip", "xz", "none"),
		limit:       c.integer("limit", -1, 0),
		chunk:       c.integer("chunk_size", 10000, 1),
		dialect: dialect{
			delimiter: c.char("delimiter", ","),
			comment:   c.char("comment", ""),
			keepBlank: !c.flag("skip_blank_lines", true),
			skipLines: c.integer("skip_rows", 0, 0),
		},
	}
	if v, ok := step.Config["compression"]; ok && v == nil {
		cfg.compression = "none" // pandas: None is no compression
	}
	switch c.oneOf("on_bad_lines", "error", "error", "skip", "warn") {
	case "skip":
		cfg.dialect.badLines = badSkip
	case "warn":
		cfg.dialect.badLines = badWarn
	}
	cfg.header = c.headerRow()
	if list := c.list("columns"); list != nil {
		cfg.columns = make([]string, len(list))
		for i, v := range list {
			s, ok := v.(string)
			if !ok {
				if n, isInt := toInt(v); isInt {
					s, ok = strconv.FormatInt(n, 10), true
				}
			}
			if !ok || slices.Contains(cfg.columns[:i], s) {
				c.fail("columns", "column names, each once", v)
			}
			cfg.columns[i] = s
		}
		cfg.dialect.dropExtra = true
	}
	if v, ok := c.get("parse_dates"); ok {
		if _, isBool := v.(bool); !isBool {
			cfg.dates = c.list("parse_dates")
		}
	}
	c.types(cfg)
	na, err := newNASet(c.list("na_values"))
	if err != nil && c.err == nil {
		c.err = err
	}
	cfg.na = na
	c.ignore("mode", "discovery", "batch_size", "component")
	if c.err != nil {
		return nil, c.err
	}
	cs, err := lookupCharset(cfg.encoding)
	if err != nil {
		return nil, fmt.Errorf("config key %q: %w", "encoding", err)
	}
	cfg.charset = cs
	c.logUnknown(step.Log())
	return cfg, nil
}

func (c *config) headerRow() int64 {
	v, ok := c.get("header")
	if !ok {
		return 0
	}
	if b, ok := v.(bool); ok {
		if b {
			return 0
		}
		return -1
	}
	n, ok := toInt(v)
	if !ok || n < 0 {
		c.fail("header", "true, false or a row number", v)
	}
	return n
}

func (c *config) types(cfg *extractConfig) {
	v, ok := c.get("dtype")
	if !ok {
		return
	}
	named := func(v any) *dtype {
		s, ok := v.(string)
		if !ok {
			c.fail("dtype", "type names", v)
			return nil
		}
		t, err := parseDtype(s)
		if err != nil && c.err == nil {
			c.err = fmt.Errorf("config key %q: %w", "dtype", err)
		}
		return t
	}
	switch v := v.(type) {
	case map[string]any:
		cfg.dtype = make(map[string]*dtype, len(v))
		for name, t := range v {
			cfg.dtype[name] = named(t)
		}
	case map[string]string:
		cfg.dtype = make(map[string]*dtype, len(v))
		for name, t := range v {
			cfg.dtype[name] = named(t)
		}
	case string:
		cfg.anyType = named(v)
	default:
		c.fail("dtype", "a mapping of columns to types", v)
	}
}

// dtype is a type the config asks for.
type dtype struct {
	kind     kind
	bits     int
	nullable bool // integers and booleans may be missing
	inferred bool // category: as without a dtype
	name     string
}

func parseDtype(s string) (*dtype, error) {
	t := &dtype{name: s}
	name := strings.TrimSuffix(s, "[pyarrow]")
	t.nullable = name != s || (name != "" && name[0] >= 'A' && name[0] <= 'Z' && name != "O")
	switch strings.ToLower(name) {
	case "str", "string", "object", "o", "u", "string[python]", "<class 'str'>":
		t.kind = kText
	case "bool", "boolean", "?":
		t.kind = kBool
		t.nullable = t.nullable || name == "boolean"
	case "category":
		t.inferred = true
	case "int", "int64", "i8":
		t.kind, t.bits = kInt, 64
	case "int32", "i4":
		t.kind, t.bits = kInt, 32
	case "int16", "i2":
		t.kind, t.bits = kInt, 16
	case "int8", "i1":
		t.kind, t.bits = kInt, 8
	case "uint", "uint64", "u8":
		t.kind, t.bits = kUint, 64
	case "uint32", "u4":
		t.kind, t.bits = kUint, 32
	case "uint16", "u2":
		t.kind, t.bits = kUint, 16
	case "uint8", "u1":
		t.kind, t.bits = kUint, 8
	case "float", "float64", "double", "f8":
		t.kind, t.bits = kFloat, 64
	case "float32", "single", "f4":
		t.kind, t.bits = kFloat, 32
	default:
		hint := ""
		if strings.HasPrefix(strings.ToLower(name), "datetime") {
			hint = "; name the column in parse_dates instead"
		}
		return nil, fmt.Errorf("data type %q not understood%s", s, hint)
	}
	return t, nil
}

// naSet holds the texts that mean missing.
type naSet struct {
	texts       map[string]struct{}
	floats      map[float64]struct{} // in columns of numbers
	first, last [256]bool            // bytes a text starts and ends with
	longest     int
}

// newNASet returns pandas' default set (pandas 3.1.1, STR_NA_VALUES) with
// extra values, which pandas also takes in their other spellings as numbers.
func newNASet(extra []any) (*naSet, error) {
	s := &naSet{texts: make(map[string]struct{}), floats: make(map[float64]struct{})}
	for _, t := range []string{
		"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
		"<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
	} {
		s.add(t)
	}
	for _, v := range extra {
		var text string
		switch v := v.(type) {
		case string:
			text = v
		case json.Number:
			text = v.String()
		case float64:
			text = string(appendFloat(nil, v, 64))
		case int:
			text = strconv.Itoa(v)
		case int64:
			text = strconv.FormatInt(v, 10)
		case bool:
			text = string(appendBool(nil, v))
		default:
			return nil, fmt.Errorf("config key %q: want texts, have %s", "na_values", describe(v))
		}
		s.add(text)
		if f, ok := parseFloat(trimSpace([]byte(text))); ok {
			s.floats[f] = struct{}{}
			if f == math.Trunc(f) && !math.IsInf(f, 0) {
				whole := strconv.FormatFloat(f, 'f', 0, 64)
				s.add(whole)
				s.add(whole + ".0")
			}
		}
	}
	return s, nil
}

func (s *naSet) add(t string) {
	s.texts[t] = struct{}{}
	s.longest = max(s.longest, len(t))
	if t != "" {
		s.first[t[0]] = true
		s.last[t[len(t)-1]] = true
	}
}

func (s *naSet) has(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	if len(b) > s.longest || !s.first[b[0]] || !s.last[b[len(b)-1]] {
		return false
	}
	_, ok := s.texts[view(b)]
	return ok
}

func (s *naSet) hasFloat(f float64) bool {
	if len(s.floats) == 0 {
		return false
	}
	_, ok := s.floats[f]
	return ok
}
