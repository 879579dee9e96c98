package csv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// The extractor reads a file in blocks that several goroutines share: they take
// turns at the tokenizer, which is sequential, and convert their blocks at the
// same time. What depends on the order of the rows happens in commits, one
// block after the other.
//
// The types of a column depend on all its values, so they are known only at the
// end. The first pass guesses that they stay those of the blocks so far, and
// converts under the guess. A block that fits changes nothing in the state of
// inference but a few flags, which fit returns; one that does not is observed
// value by value, as if there were no guess. So the types are those that
// observing everything gives. Only batches made under the final types are used:
// when a guess fails, or the batches outgrow keepBytes, a second pass makes them.

const (
	// keepBytes bounds the batches that the first pass keeps, and the size of
	// the files for which it keeps any.
	keepBytes = 64 << 20

	maxWorkers = 4 // more wait for the tokenizer
)

// part is what a worker makes of one block.
type part struct {
	block *block
	first int64 // row of the file that the block starts with
	err   error // instead of a block: io.EOF, or why the file cannot be read
}

// pass is one reading of the file.
type pass struct {
	mu    sync.Mutex
	t     *tokenizer
	limit int64 // most rows; negative: all
	rows  int64 // taken
	err   error // why there are no more parts
	last  chan struct{}
	x     *extraction
}

func newPass(x *extraction, t *tokenizer, limit int64) *pass {
	last := make(chan struct{})
	close(last)
	return &pass{x: x, t: t, limit: limit, last: last}
}

// take cuts the next block into s. ok is false when an earlier call has met the
// end. The part may be committed when before is closed, and the one after it
// when the caller closes after.
func (p *pass) take(ctx context.Context, s *storage) (out part, before <-chan struct{}, after chan<- struct{}, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return part{}, nil, nil, false
	}
	out.first = p.rows
	left := leftOf(p.limit, p.rows)
	switch err := ctx.Err(); {
	case err != nil:
		p.err = err
	case left <= 0:
		p.err = io.EOF
	default:
		p.t.use(s)
		if out.block, err = p.t.next(left); err == nil {
			p.rows += int64(out.block.rows)
		} else if p.err = err; !errors.Is(err, io.EOF) {
			p.err = p.x.errorAt(p.t, err)
		}
	}
	out.err = p.err
	done := make(chan struct{})
	before, p.last = p.last, done
	return out, before, done, true
}

// stop ends the pass: no more parts are taken.
func (p *pass) stop(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
}

// seen is what a block that fits its guess adds to the state of inference.
type seen struct{ values, missing, negative bool }

// absorb takes in a block of which fit has said that it fits c's stage.
func (c *inference) absorb(rows int, s seen) {
	c.rows += int64(rows)
	c.values = c.values || s.values
	c.missing = c.missing || s.missing
	c.negative = c.negative || s.negative
}

// guess is the types of all columns as far as they are known.
type guess struct {
	columns []*column // to be cloned
	schema  *arrow.Schema
	stages  []stage
	certain bool // no column needs what only a whole pass can tell
}

func newGuess(cols []*learner) *guess {
	columns := make([]*column, len(cols))
	g := &guess{stages: make([]stage, len(cols)), certain: true}
	for i, l := range cols {
		columns[i] = l.column()
		g.stages[i] = l.infer.stage
		if l.dates != nil || l.fixed == nil && (l.infer.stage == stUint || l.infer.stage == stBig) {
			g.certain = false
		}
	}
	g.columns, g.schema = cloneColumns(columns, nil), schemaOf(columns)
	return g
}

// holds reports whether the columns still are as guessed.
func (g *guess) holds(cols []*learner) bool {
	for i, l := range cols {
		if l.dates != nil || l.fixed != nil {
			continue
		}
		kind, whole := l.kind()
		if l.infer.stage != g.stages[i] || kind != g.columns[i].kind || whole != g.columns[i].whole {
			return false
		}
	}
	return true
}

// converter has the columns of one worker.
type converter struct {
	mem     memory.Allocator
	guess   *guess
	columns []*column
	fits    []bool
	seen    []seen
}

// use makes the converter's columns those of g.
func (v *converter) use(g *guess) {
	if v.guess == g {
		return
	}
	v.guess = g
	v.release()
	v.columns = cloneColumns(g.columns, v.mem)
	v.fits = make([]bool, len(g.columns))
	v.seen = make([]seen, len(g.columns))
}

// cloneColumns makes empty columns of the same types. With an allocator they
// must be released.
func cloneColumns(columns []*column, mem memory.Allocator) []*column {
	clones := make([]*column, len(columns))
	for i, c := range columns {
		clones[i] = &column{name: c.name, field: c.field, kind: c.kind, bits: c.bits, strict: c.strict,
			whole: c.whole, dates: c.dates, typ: c.typ, mem: mem}
	}
	return clones
}

// release frees what is not built.
func (v *converter) release() {
	for _, c := range v.columns {
		c.release()
	}
}

// convert tries the guess on a block. The batch is complete when all columns fit.
func (v *converter) convert(b *block, cols []*learner, na *naSet) (all bool) {
	all = true
	for i, l := range cols {
		c := v.columns[i]
		c.reset()
		switch {
		case l.dates != nil:
			v.fits[i] = false
		case l.fixed != nil:
			v.fits[i] = c.convert(b, na) == nil
		default:
			v.seen[i], v.fits[i] = c.fit(b, na, v.guess.stages[i])
		}
		all = all && v.fits[i]
	}
	return all
}

// fit appends the column's fields of a block if all leave the inference of the
// column in the stage: it follows inference.observe.
func (c *column) fit(b *block, na *naSet, s stage) (seen, bool) {
	switch {
	case s == stInt && (c.kind == kInt || c.whole):
		return c.fitInts(b, na)
	case s == stFloat:
		return seen{}, c.convertFloats(b, na) == nil
	case s == stBool:
		return seen{}, c.convertBools(b, na) == nil
	case s == stText || s == stRaw:
		c.convertText(b, na)
		return seen{}, true
	}
	return seen{}, false
}

func (c *column) fitInts(b *block, na *naSet) (s seen, ok bool) {
	c.reserve(b.rows, 0)
	for i, end := c.field, b.rows*b.width; i < end; i += b.width {
		f := b.spans[i]
		v := b.buf[f.start:f.end]
		var n int64
		if na.has(v) {
			s.missing = true
			c.null()
		} else {
			var p parse
			if n, p = parseInt(v); p != parsed {
				return s, false
			}
			s.values = true
			s.negative = s.negative || v[0] == '-' || isSpace(v[0]) && trimSpace(v)[0] == '-'
		}
		if c.whole {
			c.floats = append(c.floats, float64(n))
		} else {
			c.ints = append(c.ints, n)
		}
	}
	return s, true
}

func buildRecord(mem memory.Allocator, schema *arrow.Schema, columns []*column, rows int) arrow.Record {
	arrays := make([]arrow.Array, len(columns))
	for i, c := range columns {
		arrays[i] = c.build(mem)
	}
	rec := array.NewRecord(schema, arrays, int64(rows))
	for _, a := range arrays {
		a.Release()
	}
	return rec
}

func schemaOf(columns []*column) *arrow.Schema {
	fields := make([]arrow.Field, len(columns))
	for i, c := range columns {
		fields[i] = arrow.Field{Name: c.name, Type: c.typ, Nullable: true}
	}
	return arrow.NewSchema(fields, nil)
}

// observe is the first pass over the rows. It returns when all its workers have.
func (x *extraction) observe(ctx context.Context, t *tokenizer, cols []*learner, keep bool) ([]*learner, error) {
	p := newPass(x, t, x.cfg.limit)
	l := &learning{x: x, cols: cols, keep: keep}
	// The first block makes the first guess.
	var s storage
	first, _, after, _ := p.take(ctx, &s)
	v := converter{mem: x.source.step.Memory()}
	l.commit(p, first, &v, nil)
	v.release()
	close(after)
	var all sync.WaitGroup
	for range workers() {
		all.Go(func() { l.work(ctx, p) })
	}
	all.Wait()
	if errors.Is(l.err, io.EOF) {
		l.err = nil
	}
	if l.err != nil || !l.keep {
		x.drop()
	}
	x.kept = l.err == nil && l.keep
	return l.cols, l.err
}

// workers is one more than can run, since one often waits for the tokenizer.
func workers() int { return min(runtime.GOMAXPROCS(0)+1, maxWorkers) }

// learning is what the commits of the first pass share.
type learning struct {
	x    *extraction
	cols []*learner
	err  error // of the first part that has one
	size int

	mu    sync.Mutex // for what the workers look at before their turn
	guess *guess
	keep  bool
}

func (l *learning) look() (*guess, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.guess, l.keep
}

func (l *learning) work(ctx context.Context, p *pass) {
	var s storage
	v := converter{mem: l.x.source.step.Memory()}
	defer v.release()
	for {
		part, before, after, ok := p.take(ctx, &s)
		if !ok {
			return
		}
		var rec arrow.Record
		err := guarded(func() {
			if part.block != nil {
				if g, keep := l.look(); g != nil {
					v.use(g)
					if v.convert(part.block, l.cols, l.x.cfg.na) && keep {
						rec = l.x.keep(&v, part.block.rows)
					}
				}
			}
		})
		<-before
		if err == nil {
			err = guarded(func() { l.commit(p, part, &v, rec) })
		}
		if err != nil && l.err == nil {
			l.err = err
			p.stop(err)
		}
		close(after)
	}
}

// guarded turns a panic into an error: on these goroutines nobody else would, and
// the others wait for their turn.
func guarded(do func()) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	do()
	return nil
}

// keep makes a batch of what the converter has.
func (x *extraction) keep(v *converter, rows int) arrow.Record {
	return buildRecord(x.source.step.Memory(), v.guess.schema, v.columns, rows)
}

// commit takes in a part, in the order of the file. v and rec are what a guess
// made of it; rec is nil when it did not fit, or nothing is kept.
func (l *learning) commit(p *pass, part part, v *converter, rec arrow.Record) {
	defer func() {
		if rec != nil {
			rec.Release()
		}
	}()
	if l.err != nil {
		return
	}
	if l.err = part.err; l.err != nil {
		return
	}
	b, na := part.block, l.x.cfg.na
	if l.cols == nil {
		if l.cols, l.err = l.x.unnamed(b.width); l.err != nil {
			p.stop(l.err)
			return
		}
	}
	current := v.guess != nil && v.guess == l.guess
	for i, col := range l.cols {
		var err error
		switch {
		case !current || !v.fits[i]:
			err = col.observe(b, na)
		case col.fixed == nil:
			col.infer.absorb(b.rows, v.seen[i])
		}
		if err != nil {
			l.err = l.x.valueError(col.name, b, err)
			p.stop(l.err)
			return
		}
	}
	l.x.rows += int64(b.rows)
	g, keep := l.guess, l.keep
	switch {
	case g == nil:
		g = newGuess(l.cols)
		if keep = keep && g.certain; keep {
			v.use(g)
			if keep = v.convert(b, l.cols, na); keep {
				rec = l.x.keep(v, b.rows)
			}
		}
	case !g.holds(l.cols):
		g, keep = newGuess(l.cols), false
	case keep && rec == nil:
		keep = false
	}
	if keep {
		for _, c := range rec.Columns() {
			for _, buf := range c.Data().Buffers() {
				if buf != nil {
					l.size += buf.Len()
				}
			}
		}
		if keep = l.size <= l.x.keepBytes; keep {
			l.x.records = append(l.x.records, rec)
			rec = nil
		}
	}
	if !keep {
		l.x.drop()
	}
	l.mu.Lock()
	l.guess, l.keep = g, keep
	l.mu.Unlock()
}

// stream is the second pass: workers that hand over batches in the order of the
// file. They are never further ahead than a block each.
type stream struct {
	batches chan arrow.Record
	cancel  context.CancelFunc
	all     sync.WaitGroup
	err     error // once batches is closed
}

func (x *extraction) stream(ctx context.Context, t *tokenizer) *stream {
	ctx, cancel := context.WithCancel(ctx)
	s := &stream{batches: make(chan arrow.Record), cancel: cancel}
	p := newPass(x, t, x.rows)
	var workersDone sync.WaitGroup
	for range workers() {
		workersDone.Go(func() { s.work(ctx, p) })
	}
	s.all.Go(func() {
		workersDone.Wait()
		close(s.batches)
	})
	return s
}

func (s *stream) work(ctx context.Context, p *pass) {
	var buf storage
	columns := cloneColumns(p.x.columns, p.x.source.step.Memory())
	defer func() {
		for _, c := range columns {
			c.release()
		}
	}()
	for {
		part, before, after, ok := p.take(ctx, &buf)
		if !ok {
			return
		}
		var rec arrow.Record
		var err error
		if panicked := guarded(func() { rec, err = p.x.batch(part, columns) }); panicked != nil {
			err = panicked
		}
		<-before
		if s.err == nil && err != nil {
			s.err = err
			p.stop(err)
		}
		if rec != nil {
			if s.err != nil {
				rec.Release()
			} else {
				select {
				case s.batches <- rec:
				case <-ctx.Done():
					rec.Release()
					s.err = ctx.Err()
				}
			}
		}
		close(after)
	}
}

// batch converts a part by the columns of the first pass.
func (x *extraction) batch(p part, columns []*column) (arrow.Record, error) {
	if p.err != nil {
		return nil, p.err
	}
	for _, c := range columns {
		c.reset()
		if c.field >= p.block.width {
			return nil, errChanged
		}
		if err := c.convert(p.block, x.cfg.na); err != nil {
			return nil, fmt.Errorf("%w: %w", errChanged, err)
		}
	}
	return buildRecord(x.source.step.Memory(), x.schema, columns, p.block.rows), nil
}

// stop ends the workers and waits for them.
func (s *stream) stop() {
	s.cancel()
	for rec := range s.batches {
		rec.Release()
	}
	s.all.Wait()
}
