package postgres

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/apache/arrow/go/v17/arrow/array"
)

// dimsError is the error for an array whose dimensions are not those of its
// column. PostgreSQL does not hold arrays to what was declared.
func dimsError(have, want int) error {
	declared := "one dimension"
	if want > 1 {
		declared = fmt.Sprintf("%d dimensions", want)
	}
	return fmt.Errorf("the array has %d dimensions and the column is declared with %s; cast it to text, or to json with to_json(), in the query", have, declared)
}

// newArrayDecoder returns the decoder of arrays: binary ones where the elements
// are read so, otherwise the text of one.
//
// A value that fails leaves a part of it in the builder: the batch is lost.
func newArrayDecoder(t *pgType, builder *array.ListBuilder, s *specials) decoder {
	lists := []*array.ListBuilder{builder}
	for range t.dims - 1 {
		lists = append(lists, lists[len(lists)-1].ValueBuilder().(*array.ListBuilder))
	}
	values := lists[len(lists)-1].ValueBuilder()
	element := newDecoder(t.elem, values, s)
	if !t.binary() {
		return func(b []byte) error {
			p := arrayText{text: string(b), delimiter: ',', lists: lists, null: values.AppendNull, element: element}
			if t.elem.name == "box" {
				p.delimiter = ';'
			}
			return p.read()
		}
	}
	return func(b []byte) error {
		if len(b) < 12 {
			return errFormat
		}
		dims := int(int32(binary.BigEndian.Uint32(b)))
		if dims == 0 {
			builder.Append(true)
			return nil
		}
		if dims < 0 || dims > 6 || len(b) < 12+8*dims { // MAXDIM
			return errFormat
		}
		if dims != t.dims {
			return dimsError(dims, t.dims)
		}
		sizes := make([]int, dims)
		rest := b[12+8*dims:]
		total := 1
		for i := range sizes {
			sizes[i] = int(int32(binary.BigEndian.Uint32(b[12+8*i:])))
			if sizes[i] < 1 || sizes[i] > len(rest)/4 {
				return errFormat
			}
			if total *= sizes[i]; total > len(rest)/4 {
				return errFormat
			}
		}
		var read func(level int) error
		read = func(level int) error {
			lists[level].Append(true)
			for range sizes[level] {
				if level+1 < dims {
					if err := read(level + 1); err != nil {
						return err
					}
					continue
				}
				if len(rest) < 4 {
					return errFormat
				}
				size := int(int32(binary.BigEndian.Uint32(rest)))
				rest = rest[4:]
				if size < -1 || size > len(rest) {
					return errFormat
				}
				if size < 0 {
					values.AppendNull()
					continue
				}
				if err := element(rest[:size]); err != nil {
					return err
				}
				rest = rest[size:]
			}
			return nil
		}
		if err := read(0); err != nil {
			return err
		}
		if len(rest) != 0 {
			return errFormat
		}
		return nil
	}
}

// arrayText reads the text of an array, as {a,"b c",NULL}.
type arrayText struct {
	text      string
	delimiter byte
	lists     []*array.ListBuilder
	null      func()
	element   decoder
}

func (p *arrayText) read() error {
	if strings.HasPrefix(p.text, "[") { // [0:1]={...}: bounds that are not from 1
		_, after, ok := strings.Cut(p.text, "=")
		if !ok {
			return errFormat
		}
		p.text = after
	}
	if p.text == "{}" {
		p.lists[0].Append(true)
		return nil
	}
	depth := 0
	for depth < len(p.text) && p.text[depth] == '{' {
		depth++
	}
	if depth != len(p.lists) {
		return dimsError(depth, len(p.lists))
	}
	if err := p.list(0); err != nil {
		return err
	}
	if p.text != "" {
		return errFormat
	}
	return nil
}

func (p *arrayText) list(level int) error {
	if !p.take('{') {
		return errFormat
	}
	p.lists[level].Append(true)
	for {
		var err error
		if level+1 < len(p.lists) {
			err = p.list(level + 1)
		} else {
			err = p.value()
		}
		if err != nil {
			return err
		}
		if p.take('}') {
			return nil
		}
		if !p.take(p.delimiter) {
			return errFormat
		}
	}
}

func (p *arrayText) take(b byte) bool {
	if p.text == "" || p.text[0] != b {
		return false
	}
	p.text = p.text[1:]
	return true
}

func (p *arrayText) value() error {
	if !p.take('"') {
		end := strings.IndexAny(p.text, string([]byte{p.delimiter, '}'}))
		if end <= 0 {
			return errFormat
		}
		v := p.text[:end]
		p.text = p.text[end:]
		if v == "NULL" {
			p.null()
			return nil
		}
		return p.element([]byte(v))
	}
	var v []byte
	for i := 0; i < len(p.text); i++ {
		switch c := p.text[i]; {
		case c == '"':
			p.text = p.text[i+1:]
			return p.element(v)
		case c == '\\' && i+1 < len(p.text):
			i++
			v = append(v, p.text[i])
		default:
			v = append(v, c)
		}
	}
	return errFormat
}
