package mysql

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/osiris-pipelines/remote/worker"
)

// fields reads a config, or a connection, key by key. The first wrong value is
// kept as the error, which does not quote it: it may be a secret.
type fields struct {
	what   string // "config key" or "connection field"
	values map[string]any
	err    error
}

func (f *fields) fail(key, want string) {
	if f.err == nil {
		f.err = fmt.Errorf("%s %q: want %s", f.what, key, want)
	}
}

// first returns the first of several keys that has a value; null is none.
func (f *fields) first(keys ...string) (key string, v any) {
	for _, key := range keys {
		if v := f.values[key]; v != nil {
			return key, v
		}
	}
	return keys[0], nil
}

// text returns a text. A number is one, too: YAML makes one of a password of
// digits.
func (f *fields) text(keys ...string) string {
	key, v := f.first(keys...)
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case json.Number:
		return v.String()
	case int:
		return strconv.Itoa(v)
	}
	f.fail(key, "text")
	return ""
}

func (f *fields) integer(key string, otherwise, least, most int64) int64 {
	n, ok := otherwise, true
	switch v := f.values[key].(type) {
	case nil:
	case int:
		n = int64(v)
	case int64:
		n = v
	case float64:
		n, ok = int64(v), v == math.Trunc(v) && math.Abs(v) < 1<<53
	case json.Number:
		n, ok = parseWhole(v.String())
	case string:
		if strings.TrimSpace(v) != "" {
			n, ok = parseWhole(strings.TrimSpace(v))
		}
	default:
		ok = false
	}
	if !ok || n < least || n > most {
		f.fail(key, fmt.Sprintf("an integer from %d to %d", least, most))
		return otherwise
	}
	return n
}

func parseWhole(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// flag returns a truth value, and whether there is one.
func (f *fields) flag(keys ...string) (value, ok bool) {
	key, v := f.first(keys...)
	switch v := v.(type) {
	case nil:
		return false, false
	case bool:
		return v, true
	case string:
		if b, err := strconv.ParseBool(strings.ToLower(strings.TrimSpace(v))); err == nil {
			return b, true
		}
	}
	f.fail(key, "true or false")
	return false, false
}

// names returns a list of names; a text is a list of one.
func (f *fields) names(keys ...string) []string {
	key, v := f.first(keys...)
	switch v := v.(type) {
	case nil:
		return nil
	case string:
		return []string{v}
	case []string:
		return v
	case []any:
		list := make([]string, len(v))
		for i, item := range v {
			s, ok := item.(string)
			if !ok || s == "" {
				f.fail(key, "a list of column names")
				return nil
			}
			list[i] = s
		}
		return list
	}
	f.fail(key, "a list of column names")
	return nil
}

func (f *fields) oneOf(otherwise string, allowed []string, keys ...string) string {
	key, v := f.first(keys...)
	if v == nil {
		return otherwise
	}
	if b, ok := v.(bool); ok {
		v = strconv.FormatBool(b)
	}
	s, ok := v.(string)
	if s = strings.ToLower(strings.TrimSpace(s)); !ok || !slices.Contains(allowed, s) {
		f.fail(key, "one of "+strings.Join(allowed, ", "))
		return otherwise
	}
	return s
}

// stepError begins as the original's errors of a config do.
func stepError(step *worker.Step, message string) error {
	return errors.New("Step " + step.ID + ": " + message)
}

// extractConfig is the extractor's config, decoded.
type extractConfig struct {
	query       string
	batchRows   int
	batchBytes  int
	coerceFloat bool
	strictDates bool
}

const defaultBatchRows = 10000

func decodeExtract(step *worker.Step) (*extractConfig, error) {
	f := &fields{what: "config key", values: step.Config}
	cfg := &extractConfig{
		query:       strings.TrimSpace(f.text("query")),
		batchRows:   int(f.integer("batch_size", defaultBatchRows, 1, 1<<20)),
		strictDates: f.oneOf("null", []string{"null", "error"}, "zero_dates") == "error",
	}
	cfg.coerceFloat, _ = f.flag("coerce_float")
	if f.err != nil {
		return nil, f.err
	}
	if cfg.query == "" {
		return nil, stepError(step, "'query' is required in config")
	}
	return cfg, nil
}

// The modes of the writer.
const (
	modeAppend  = "append"
	modeUpsert  = "upsert"
	modeReplace = "replace"
)

// writeConfig is the writer's config, decoded.
type writeConfig struct {
	table     string
	schema    string
	mode      string
	keys      []string
	batchRows int
	create    bool
	truncate  bool
	oneByOne  bool // every batch in a transaction of its own
}

func decodeWrite(step *worker.Step) (*writeConfig, error) {
	f := &fields{what: "config key", values: step.Config}
	cfg := &writeConfig{
		table:     f.text("table"),
		schema:    f.text("schema"),
		keys:      f.names("primary_key", "upsert_keys"),
		batchRows: int(f.integer("batch_size", 1000, 1, 1<<20)),
	}
	// A compiled config has the step's own mode there, which says nothing.
	keys := []string{"write_mode", "mode"}
	if s, _ := step.Config["mode"].(string); s == "write" {
		keys = keys[:1]
	}
	cfg.mode = f.oneOf(modeAppend, []string{modeAppend, "insert", modeUpsert, modeReplace}, keys...)
	if cfg.mode == "insert" {
		cfg.mode = modeAppend
	}
	cfg.create, _ = f.flag("create_if_missing", "create_table")
	cfg.truncate, _ = f.flag("truncate_before")
	if one, ok := f.flag("single_transaction"); ok {
		cfg.oneByOne = !one
	}
	switch {
	case f.err != nil:
		return nil, f.err
	case cfg.table == "":
		return nil, stepError(step, "'table' is required in config")
	case cfg.mode == modeUpsert && len(cfg.keys) == 0:
		return nil, stepError(step, "'primary_key' or 'upsert_keys' is required when the mode is 'upsert'")
	}
	return cfg, nil
}
