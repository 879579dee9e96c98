package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/osiris-pipelines/remote/rpc"
)

// Files of a run, below its directory, that say what became of its worker.
const (
	DeathFile     = "death.json"  // an [rpc.Death], once the worker is dead
	ProcessesFile = "worker.json" // an [rpc.Processes], once it was started
)

// MaxDeath bounds the size of the files above, and of what status prints.
const MaxDeath = 1 << 20

// writeRecord puts a JSON document in place, whole or not at all.
func writeRecord(fsys FS, dir, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	target := filepath.Join(dir, name)
	part := target + ".part"
	f, err := fsys.Create(part)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = fsys.Rename(part, target)
	}
	if err != nil {
		_ = fsys.RemoveAll(part)
	}
	return err
}

// readRecord reads a JSON document of the run's folder.
func readRecord(fsys FS, dir, name string, v any) error {
	f, err := openRegular(fsys, filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxDeath))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// readDeath returns the death record, or nil when there is none.
func readDeath(fsys FS, dir string) *rpc.Death {
	var d rpc.Death
	if readRecord(fsys, dir, DeathFile, &d) != nil {
		return nil
	}
	return &d
}

// serveAlone is the supervisor where it can be no process of its own: it
// serves, and records the end that it sees.
func (p Program) serveAlone(dir string, fsys FS, stderr io.Writer, serve func(stderr io.Writer) int) int {
	said := &excerpt{}
	code := serve(io.MultiWriter(stderr, said))
	d := rpc.Death{Time: time.Now().UTC(), ExitCode: code, Stderr: said.String()}
	// Functions have no processes but their own, and it has ended.
	d.Observed = !p.ownProcess
	if err := writeRecord(fsys, dir, DeathFile, d); err != nil {
		fmt.Fprintln(stderr, "worker: death record:", err)
	}
	return code
}

// status prints how the worker is, and with reap first ends what is left of
// the run.
func (p Program) status(dir string, fsys FS, reap bool, stdout, stderr io.Writer) int {
	s := rpc.WorkerStatus{Time: time.Now().UTC(), JournalEnd: journalEnd(fsys, dir), Death: readDeath(fsys, dir)}
	if p.ownProcess {
		look(fsys, dir, reap, &s)
		if s.Death == nil && s.Supervisor != nil && !s.Supervisor.Alive {
			s.Death = readDeath(fsys, dir) // written in between
		}
	} else if reap {
		s.Remains = &rpc.Remains{Observed: true} // functions start no processes
	}
	if err := json.NewEncoder(stdout).Encode(s); err != nil {
		fmt.Fprintln(stderr, "worker:", err)
		return 1
	}
	return 0
}

// Reap ends what is left of the processes of the run in dir on this machine,
// the supervisor and the worker among them. It knows them by their parents and
// by a mark in their environment, where the platform shows that.
func Reap(dir string) rpc.Remains {
	var s rpc.WorkerStatus
	look(OSFS{}, dir, true, &s)
	return *s.Remains
}

// journalEnd returns the length of a run's journal.
func journalEnd(fsys FS, dir string) int64 {
	entries, err := fsys.ReadDir(filepath.Join(dir, journalDir))
	end := int64(-1)
	if err != nil {
		return end
	}
	for _, e := range entries { // in order
		base, ok := strings.CutSuffix(e.Name(), ".journal")
		n, err := strconv.ParseInt(base, 10, 64)
		if !ok || err != nil {
			continue
		}
		info, err := fsys.Stat(filepath.Join(dir, journalDir, e.Name()))
		if err == nil {
			end = n + info.Size()
		} else if !errors.Is(err, fs.ErrNotExist) {
			return -1
		}
	}
	return end
}

// excerptHalf is how much an excerpt keeps of the beginning, and of the end.
const excerptHalf = 8 << 10

// excerpt keeps the beginning and the end of what is written to it.
type excerpt struct {
	mu         sync.Mutex
	head, tail []byte
	cut        int64
}

func (e *excerpt) Write(b []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := len(b)
	k := min(excerptHalf-len(e.head), n)
	e.head = append(e.head, b[:k]...)
	e.tail = append(e.tail, b[k:]...)
	if over := len(e.tail) - excerptHalf; over > excerptHalf { // now and then, not at every write
		e.cut += int64(over)
		e.tail = append(e.tail[:0], e.tail[over:]...)
	}
	return n, nil
}

func (e *excerpt) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	tail, cut := e.tail, e.cut
	if over := len(tail) - excerptHalf; over > 0 {
		tail, cut = tail[over:], cut+int64(over)
	}
	if cut == 0 {
		return text(append(append([]byte(nil), e.head...), tail...))
	}
	return fmt.Sprintf("%s\n... (%d bytes) ...\n%s", text(e.head), cut, text(tail))
}

// text makes valid UTF-8 of bytes that were cut anywhere.
func text(b []byte) string { return strings.ToValidUTF8(string(b), string(utf8.RuneError)) }
