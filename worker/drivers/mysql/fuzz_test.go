package mysql

import (
	"database/sql/driver"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// FuzzDecimal compares with math/big, and reads back what is written.
func FuzzDecimal(f *testing.F) {
	for _, s := range []string{"0", "-0.5", "99999999999999999999999999999999999.999999999999999999999999999999", "1.", ".5", "+7", "", "-", "1.2.3", "1e5", "00012.300",
		"9999999999999999999", "10000000000000000000", "18446744073709551616"} {
		f.Add(s, 65, 30)
		f.Add(s, 10, 2)
	}
	f.Fuzz(func(t *testing.T, s string, precision, scale int) {
		// Any two numbers stand for a type that there is.
		precision = 1 + int(uint(precision-1)%maxDigits)
		scale = int(uint(scale) % uint(precision+1))
		limbs, negative, err := parseDecimal([]byte(s), precision, scale)
		if err != nil {
			return
		}
		got := new(big.Int)
		for i := len(limbs) - 1; i >= 0; i-- {
			got.Or(got.Lsh(got, 64), new(big.Int).SetUint64(limbs[i]))
		}
		if negative {
			got.Neg(got)
		}
		whole, decimals, _ := strings.Cut(s, ".")
		if len(decimals) > scale {
			decimals = decimals[:scale] // zeros
		}
		want, ok := new(big.Int).SetString(whole+decimals+strings.Repeat("0", scale-len(decimals)), 10)
		if !ok {
			if strings.Trim(s, "+-.0") != "" {
				t.Fatalf("%q is no number, and is read as %v", s, got)
			}
			return
		}
		if got.Cmp(want) != 0 {
			t.Fatalf("%q with %d decimals is %v, want %v", s, scale, got, want)
		}
		if len(new(big.Int).Abs(got).String()) > precision {
			t.Fatalf("%q has more than %d digits", s, precision)
		}
		again, _, err := parseDecimal(appendDecimal(nil, got, scale), precision, scale)
		if err != nil || again != limbs {
			t.Fatalf("%q is written as %s: %v, %v", s, appendDecimal(nil, got, scale), again, err)
		}
	})
}

// FuzzTimes reads dates and times, and compares them with package time's.
func FuzzTimes(f *testing.F) {
	for _, s := range []string{"2024-02-29", "0000-00-00", "2023-02-29", "0000-01-01 00:00:00", "9999-12-31 23:59:59.999999", "2024-01-01T00:00:00", "2024-01-01 00:00:00.1", "-838:59:59", "12:34:56.7", "1:2:3", "2024-01-01 24:00:00", "1900-03-01", "2000-02-29 12:00:00."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		stamps := array.NewTimestampBuilder(memory.DefaultAllocator, &arrow.TimestampType{Unit: arrow.Microsecond})
		defer stamps.Release()
		days := array.NewDate32Builder(memory.DefaultAllocator)
		defer days.Release()
		spans := array.NewDurationBuilder(memory.DefaultAllocator, &arrow.DurationType{Unit: arrow.Microsecond})
		defer spans.Release()
		parseDuration(spans, []byte(s)) //nolint:errcheck // it must not panic
		err := parseTimestamp(stamps, []byte(s))
		var want time.Time
		wantErr := errors.New("no time")
		for _, layout := range []string{time.DateOnly, time.DateTime} {
			if wantErr != nil && (len(s) == 10) == (layout == time.DateOnly) {
				want, wantErr = time.Parse(layout, s)
			}
		}
		if err == nil && wantErr == nil {
			if got := stamps.NewTimestampArray().Value(0).ToTime(arrow.Microsecond); !got.Equal(want) {
				t.Fatalf("%q is %v, want %v", s, got, want)
			}
		}
		// Package time takes "1:00:00", " 1:00:00" and commas, too.
		if err != nil && wantErr == nil && (len(s) == 10 || len(s) >= 19 && len(s) <= 26 && s[11] >= '0' && s[13] == ':' && !strings.Contains(s, ",")) {
			t.Fatalf("%q is a time: %v", s, err)
		}
		if parseDate(days, []byte(s)) == nil {
			if got := days.NewDate32Array().Value(0).FormattedString(); got != s {
				t.Fatalf("%q is the day %s", s, got)
			}
		}
	})
}

// FuzzQuoted reads back what is quoted, as the server does.
func FuzzQuoted(f *testing.F) {
	f.Add("it's \\ \x00\n\r\x1a \"")
	f.Fuzz(func(t *testing.T, s string) {
		q := string(appendQuoted(nil, s))
		if len(q) < 2 || q[0] != '\'' || q[len(q)-1] != '\'' {
			t.Fatalf("%q", q)
		}
		var got strings.Builder
		for i := 1; i < len(q)-1; i++ {
			c := q[i]
			if c == '\'' {
				t.Fatalf("%q ends before its end", q)
			}
			if c == '\\' {
				if i++; i == len(q)-1 {
					t.Fatalf("the last quote of %q is escaped", q)
				}
				switch c = q[i]; c {
				case '0':
					c = 0
				case 'n':
					c = '\n'
				case 'r':
					c = '\r'
				case 'Z':
					c = 0x1a
				}
			}
			got.WriteByte(c)
		}
		if got.String() != s {
			t.Fatalf("%q is quoted as %q", s, q)
		}
		name := string(appendName(nil, s))
		if strings.ReplaceAll(name[1:len(name)-1], "``", "`") != s || strings.Contains(strings.ReplaceAll(name[1:len(name)-1], "``", ""), "`") {
			t.Fatalf("%q is the name %q", s, name)
		}
	})
}

// otherRows are rows of a client library with other variables.
type otherRows struct {
	driver.Rows
	rs struct{ columns []int }
}

func TestSizeOfOtherLibrary(t *testing.T) {
	for _, rows := range []driver.Rows{nil, &otherRows{}, &otherRows{rs: struct{ columns []int }{[]int{1}}}} {
		if _, _, ok := sizeOf(rows, 0); ok {
			t.Errorf("%T tells a size", rows)
		}
	}
}

func TestParseTextNotUTF8(t *testing.T) {
	b := array.NewStringBuilder(memory.DefaultAllocator)
	defer b.Release()
	if err := parseText(b, []byte("a\xff")); err == nil || !strings.Contains(err.Error(), "not valid UTF-8") {
		t.Errorf("error %v", err)
	}
	if b.Len() != 0 {
		t.Errorf("%d values were added", b.Len())
	}
}
