package csv

import "bytes"

// kind is what the values of a column are.
type kind int

const (
	kText    kind = iota
	kRawText      // text whose missing values stay as they are
	kBigInt       // integers of any size, as text
	kInt
	kUint
	kFloat
	kBool
	kTime
)

// stage is how far the inference of a column has come. It follows the order in
// which pandas tries types (parsers.pyx, _convert_tokens), but in one pass:
// a column moves on when a value does not fit, and never back.
type stage int

const (
	stInt   stage = iota // integers, or nothing but missing values
	stUint               // an integer did not fit int64
	stBig                // an integer did not fit uint64
	stFloat              // numbers
	stBool
	stText // for good
	stRaw  // for good
)

// inference learns the type of one column.
type inference struct {
	stage    stage
	rows     int64
	values   bool // a value that is not missing has been seen
	missing  bool
	negative bool // an integer starts with a minus, as far as pandas looks
	large    bool // an integer is above int64
	bigOK    bool // since stUint: all values are integers of any size
	floatOK  bool // since stUint: all values are numbers
	scratch  []byte
}

// observe takes in a column of a block.
func (c *inference) observe(b *block, col int, na *naSet) {
	c.rows += int64(b.rows)
	if c.stage == stText || c.stage == stRaw {
		return
	}
	i, step := col, b.width
	for end := b.rows * b.width; i < end; i += step {
		s := b.spans[i]
		v := b.buf[s.start:s.end]
		switch c.stage {
		case stInt:
			if na.has(v) {
				c.missing = true
				continue
			}
			if _, p := parseInt(v); p == parsed {
				c.values = true
				c.negative = c.negative || v[0] == '-' || isSpace(v[0]) && trimSpace(v)[0] == '-'
				continue
			}
		case stFloat:
			if plainFloat(v) {
				continue
			}
			if _, ok := parseFloat(v); ok {
				continue
			}
			if na.has(v) {
				c.missing = true
				continue
			}
		default:
			if na.has(v) {
				c.missing = true
				continue
			}
		}
		c.move(v)
		if c.stage == stText || c.stage == stRaw {
			return
		}
	}
}

// move takes in a value that is not missing and finds the stage for it.
func (c *inference) move(v []byte) {
	switch c.stage {
	case stInt:
		_, p := parseInt(v)
		if p == overflow {
			c.stage, c.bigOK, c.floatOK = stUint, true, true
			c.values = true
			c.move(v)
			return
		}
		if _, ok := parseFloat(v); ok {
			c.stage = stFloat
		} else if _, ok := parseBool(v); ok && !c.values {
			c.stage = stBool
		} else {
			c.stage = stText
		}
		c.values = true
	case stUint:
		c.moveUint(v)
	case stBig:
		if !c.isBig(v) {
			c.stage = stRaw
		}
	case stFloat:
		c.stage = stText // the caller knows that it is no number
	case stBool:
		if _, ok := parseBool(v); !ok {
			c.stage = stText
		}
	}
}

func (c *inference) moveUint(v []byte) {
	if t := bytes.TrimLeft(v, " \t\n\v\f\r"); len(t) > 0 && t[0] == '-' {
		// pandas takes anything with a minus for a negative integer here.
		c.negative = true
		c.bigOK = c.bigOK && c.isBig(v)
		if _, ok := parseFloat(v); !ok {
			c.floatOK = false
		}
		return
	}
	n, p := parseUint(v)
	switch {
	case p == overflow:
		if c.stage = stRaw; c.bigOK {
			c.stage = stBig
		}
	case p == notNumber:
		c.stage = stText
		if _, ok := parseFloat(v); ok && c.floatOK {
			c.stage = stFloat
		}
	case n > 1<<63-1:
		c.large = true
	}
}

func (c *inference) isBig(v []byte) bool {
	var ok bool
	c.scratch, ok = appendBigInt(c.scratch[:0], v)
	return ok
}

// result returns the column's kind once all rows have been seen.
func (c *inference) result() kind {
	if c.rows == 0 {
		return kText
	}
	switch c.stage {
	case stInt:
		if c.missing || !c.values {
			return kFloat
		}
		return kInt
	case stUint:
		switch {
		case c.large && (c.negative || c.missing):
			return kRawText
		case !c.negative:
			return kUint
		case c.bigOK:
			return kBigInt
		}
		return kRawText
	case stBig:
		return kBigInt
	case stFloat:
		return kFloat
	case stBool:
		return kBool
	case stRaw:
		return kRawText
	}
	return kText
}
