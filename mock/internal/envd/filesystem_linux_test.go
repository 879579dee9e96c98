package envd_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/osiris-pipelines/remote/internal/envdpb"
)

func TestStat(t *testing.T) {
	tg := newTarget(t)
	dir := t.TempDir()
	file := write(t, dir+"/file", "content")
	for link, target := range map[string]string{"/link": "file", "/dirlink": dir, "/broken": "no", "/loop": "loop"} {
		if err := os.Symlink(target, dir+link); err != nil {
			t.Fatal(err)
		}
	}
	entry := func(name, path string, kind pb.FileType, mode uint32, target string) *pb.EntryInfo {
		info, err := os.Lstat(dir + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		owner, group := host{}.Owner(info)
		e := &pb.EntryInfo{
			Name: name, Path: path, Type: kind, Mode: mode, Size: info.Size(), Permissions: info.Mode().String(),
			Owner: owner, Group: group, ModifiedTime: timestamppb.New(info.ModTime()),
		}
		if target != "" {
			e.SymlinkTarget = &target
		}
		return e
	}
	const isFile, isDir, isOther = pb.FileType_FILE_TYPE_FILE, pb.FileType_FILE_TYPE_DIRECTORY, pb.FileType_FILE_TYPE_UNSPECIFIED
	tests := map[string]struct {
		path string
		want *pb.EntryInfo
		code string
	}{
		"file":      {file, entry("file", file, isFile, 0o640, ""), ""},
		"not clean": {dir + "/./file", entry("file", dir+"/./file", isFile, 0o640, ""), ""},
		"link":      {dir + "/link", entry("link", dir+"/link", isFile, 0o640, file), ""},
		"dirlink":   {dir + "/dirlink", entry("dirlink", dir+"/dirlink", isDir, 0o755, dir), ""},
		"broken":    {dir + "/broken", entry("broken", dir+"/broken", isOther, 0, dir+"/broken"), ""},
		"loop":      {dir + "/loop", entry("loop", dir+"/loop", isOther, 0, dir+"/loop"), ""},
		"missing":   {dir + "/no", nil, "not_found"},
		"below":     {file + "/x", nil, "internal"},
		"slash":     {file + "/", nil, "internal"},
		"tilde":     {"~bob", nil, "invalid_argument"},
	}
	for _, c := range codecs {
		for name, tt := range tests {
			t.Run(string(c)+" "+name, func(t *testing.T) {
				res := &pb.StatResponse{}
				if code := tg.call(c, pb.FilesystemStat, &pb.StatRequest{Path: tt.path}, res); code != tt.code {
					t.Errorf("code %q, want %q", code, tt.code)
				}
				if diff := cmp.Diff(tt.want, res.GetEntry(), protocmp.Transform()); diff != "" {
					t.Errorf("entry (-want +got):\n%s", diff)
				}
			})
		}
	}
	res := &pb.StatResponse{}
	if tg.must("json", pb.FilesystemStat, &pb.StatRequest{Path: "~/"}, res); res.GetEntry().GetPath() != home(t) {
		t.Errorf("home is %v", res)
	}
	if tg.must("json", pb.FilesystemStat, &pb.StatRequest{Path: "x/../"}, res); res.GetEntry().GetPath() != home(t) {
		t.Errorf("relative path is %v", res)
	}
	if code := tg.call("json", pb.FilesystemStat, &pb.StatRequest{}, res, "Authorization", "Basic bm9ib2R5eDo="); code != "unauthenticated" {
		t.Errorf("unknown user: %q", code)
	}
}

// TestStatJSON shows that zero values are left out, numbers of 64 bits are
// strings, and one old client gets less.
func TestStatJSON(t *testing.T) {
	tg := newTarget(t)
	name := write(t, t.TempDir()+"/file", "")
	stat := func(agent string) (string, string) {
		res, body := tg.do(request{
			path:   pb.FilesystemStat,
			header: header("Content-Type", "application/json", "User-Agent", agent),
			body:   strings.NewReader(`{"path":"` + name + `","unknown":1}`),
		})
		return res.Header.Get("X-E2b-Legacy-Sdk"), body
	}
	legacy, body := stat("me")
	if legacy != "" || strings.Contains(body, "size") || !strings.Contains(body, `"mode":416`) {
		t.Errorf("%q, %s", legacy, body)
	}
	legacy, body = stat("connect-python")
	want := &pb.StatResponse{Entry: &pb.EntryInfo{Name: "file", Path: name, Type: pb.FileType_FILE_TYPE_FILE}}
	got := &pb.StatResponse{}
	if err := protojson.Unmarshal([]byte(body), got); err != nil || legacy != "true" {
		t.Errorf("%q, %v", legacy, err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestOldClient shows that all answers to one old client lack the newer fields.
func TestOldClient(t *testing.T) {
	tg := newTarget(t)
	dir := t.TempDir()
	call := func(procedure string, req, res proto.Message) {
		t.Helper()
		if code := tg.call("proto", procedure, req, res, "User-Agent", "connect-python"); code != "" {
			t.Errorf("%s: %s", procedure, code)
		}
	}
	created := &pb.CreateWatcherResponse{}
	call(pb.FilesystemCreateWatcher, &pb.CreateWatcherRequest{Path: dir, IncludeEntry: true}, created)
	made, moved, listed, events := &pb.MakeDirResponse{}, &pb.MoveResponse{}, &pb.ListDirResponse{}, &pb.GetWatcherEventsResponse{}
	call(pb.FilesystemMakeDir, &pb.MakeDirRequest{Path: dir + "/a"}, made)
	call(pb.FilesystemMove, &pb.MoveRequest{Source: dir + "/a", Destination: dir + "/b"}, moved)
	call(pb.FilesystemListDir, &pb.ListDirRequest{Path: dir}, listed)
	eventually(t, "events", func() bool {
		call(pb.FilesystemGetWatcherEvents, &pb.GetWatcherEventsRequest{WatcherId: created.GetWatcherId()}, events)
		return len(events.GetEvents()) > 0
	})
	call(pb.FilesystemRemoveWatcher, &pb.RemoveWatcherRequest{WatcherId: created.GetWatcherId()}, &pb.RemoveWatcherResponse{})
	entry := func(name string) *pb.EntryInfo {
		return &pb.EntryInfo{Name: name, Path: dir + "/" + name, Type: pb.FileType_FILE_TYPE_DIRECTORY}
	}
	got := append([]*pb.EntryInfo{made.GetEntry(), moved.GetEntry()}, listed.GetEntries()...)
	if diff := cmp.Diff([]*pb.EntryInfo{entry("a"), entry("b"), entry("b")}, got, protocmp.Transform()); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if first := happened(events.GetEvents())[0]; first != "CREATE a" {
		t.Errorf("first event is %s", first)
	}
}

func TestListDir(t *testing.T) {
	tg := newTarget(t)
	dir := t.TempDir()
	file := write(t, dir+"/a/b/c/file", "")
	write(t, dir+"/z", "")
	for link, target := range map[string]string{"/link": dir + "/a", "/a/inner": dir, "/loop": "loop"} {
		if err := os.Symlink(target, dir+link); err != nil {
			t.Fatal(err)
		}
	}
	tests := map[string]struct {
		path  string
		depth uint32
		want  []string
		code  string
	}{
		"default":  {dir, 0, []string{"/a", "/link", "/loop", "/z"}, ""},
		"depth 2":  {dir, 2, []string{"/a", "/a/b", "/a/inner", "/link", "/loop", "/z"}, ""},
		"deep":     {dir + "/", 9, []string{"/a", "/a/b", "/a/b/c", "/a/b/c/file", "/a/inner", "/link", "/loop", "/z"}, ""},
		"link":     {dir + "/link", 1, []string{"/link/b", "/link/inner"}, ""},
		"by link":  {dir + "/link/inner/a/b", 1, []string{"/link/inner/a/b/c"}, ""},
		"file":     {file, 1, nil, "invalid_argument"},
		"below":    {file + "/x", 1, nil, "internal"},
		"missing":  {dir + "/no", 1, nil, "not_found"},
		"too long": {dir + "/loop", 1, nil, "failed_precondition"},
	}
	for _, c := range codecs {
		for name, tt := range tests {
			t.Run(string(c)+" "+name, func(t *testing.T) {
				res := &pb.ListDirResponse{}
				code := tg.call(c, pb.FilesystemListDir, &pb.ListDirRequest{Path: tt.path, Depth: tt.depth}, res)
				var got []string
				for _, e := range res.GetEntries() {
					got = append(got, strings.TrimPrefix(e.GetPath(), dir))
				}
				if diff := cmp.Diff(tt.want, got); diff != "" || code != tt.code {
					t.Errorf("code %q, want %q; paths (-want +got):\n%s", code, tt.code, diff)
				}
			})
		}
	}
}

// TestChangeFiles is about the codes of the procedures that change files.
func TestChangeFiles(t *testing.T) {
	for _, c := range codecs {
		t.Run(string(c), func(t *testing.T) {
			tg := newTarget(t)
			dir := t.TempDir()
			file := write(t, dir+"/file", "1")
			write(t, dir+"/full/x", "")
			mk := func(p string) (proto.Message, proto.Message, string) {
				return &pb.MakeDirRequest{Path: p}, &pb.MakeDirResponse{}, pb.FilesystemMakeDir
			}
			mv := func(from, to string) (proto.Message, proto.Message, string) {
				return &pb.MoveRequest{Source: from, Destination: to}, &pb.MoveResponse{}, pb.FilesystemMove
			}
			rm := func(p string) (proto.Message, proto.Message, string) {
				return &pb.RemoveRequest{Path: p}, &pb.RemoveResponse{}, pb.FilesystemRemove
			}
			check := func(want string) func(req, res proto.Message, procedure string) {
				return func(req, res proto.Message, procedure string) {
					t.Helper()
					if code := tg.call(c, procedure, req, res); code != want {
						t.Errorf("%s %v: %q, want %q", procedure, req, code, want)
					}
				}
			}
			check("")(mk(dir + "/new/deep"))
			check("already_exists")(mk(dir + "/new/deep"))
			check("already_exists")(mk(dir + "/new/"))
			check("invalid_argument")(mk(file))
			check("internal")(mk(file + "/x"))
			check("invalid_argument")(mk("~bob"))

			check("")(mv(file, dir+"/other/place"))
			check("not_found")(mv(dir+"/no", dir+"/parents/made"))
			check("internal")(mv(dir+"/other/place/x", dir+"/y"))
			check("internal")(mv(dir+"/other", dir+"/full"))
			check("internal")(mv(dir+"/other", dir+"/new/deep"))
			check("not_found")(mv(dir+"/no", dir+"/new/deep"))
			check("internal")(mv(dir+"/full", dir+"/other/place/x"))
			check("")(mv(dir+"/other/place", dir+"/full/x"))
			if got := read(t, dir+"/full/x"); got != "1" {
				t.Errorf("moved file has %q", got)
			}

			check("")(rm(dir + "/full"))
			check("")(rm(dir + "/full"))
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, e := range entries {
				names = append(names, e.Name())
			}
			if diff := cmp.Diff([]string{"new", "other", "parents"}, names); diff != "" {
				t.Errorf("left (-want +got):\n%s", diff)
			}
		})
	}
}

// happened names events briefly, without repetitions side by side: how many
// writes there are is the kernel's business.
func happened(events []*pb.FilesystemEvent) (names []string) {
	for _, e := range events {
		name := strings.TrimPrefix(e.GetType().String(), "EVENT_TYPE_") + " " + e.GetName()
		if e.GetEntry() != nil {
			name += " " + e.GetEntry().GetType().String()
		}
		names = append(names, name)
	}
	return slices.Compact(names)
}

// change makes the events that the tests of watching expect.
func change(t *testing.T, dir string) {
	t.Helper()
	file := write(t, dir+"/file", "x")
	for _, err := range []error{os.Chmod(file, 0o600), os.Rename(file, dir+"/moved"), os.Remove(dir + "/moved")} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

var changes = []string{"CREATE file", "WRITE file", "CHMOD file", "RENAME file", "CREATE moved", "REMOVE moved"}

func TestWatchDir(t *testing.T) {
	tg := newTarget(t)
	for _, c := range codecs {
		t.Run(string(c), func(t *testing.T) {
			dir := t.TempDir()
			s := tg.open(c, pb.FilesystemWatchDir, &pb.WatchDirRequest{Path: dir}, "Keepalive-Ping-Interval", "1")
			defer s.close()
			res := &pb.WatchDirResponse{}
			if end, ok := s.next(res); !ok || res.GetStart() == nil {
				t.Fatalf("first is %v, %q", res, end)
			}
			change(t, dir)
			var events []*pb.FilesystemEvent
			for res.GetKeepalive() == nil {
				res = &pb.WatchDirResponse{}
				if end, ok := s.next(res); !ok {
					t.Fatalf("the stream ended: %q", end)
				}
				if ev := res.GetFilesystem(); ev != nil {
					events = append(events, ev)
				}
			}
			if diff := cmp.Diff(changes, happened(events)); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWatchDirEntries(t *testing.T) {
	tg := newTarget(t)
	dir := t.TempDir()
	for agent, want := range map[string]string{"me": "CREATE sub FILE_TYPE_DIRECTORY", "connect-python": "CREATE sub"} {
		s := tg.open("json", pb.FilesystemWatchDir, &pb.WatchDirRequest{Path: dir, IncludeEntry: true}, "User-Agent", agent)
		res := &pb.WatchDirResponse{}
		s.next(res)
		if err := os.Mkdir(dir+"/sub", 0o755); err != nil {
			t.Fatal(err)
		}
		s.next(res)
		if got := happened([]*pb.FilesystemEvent{res.GetFilesystem()}); got[0] != want {
			t.Errorf("%s: %v, want %s", agent, got, want)
		}
		s.close()
		if err := os.Remove(dir + "/sub"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWatchErrors(t *testing.T) {
	tg := newTarget(t)
	file := write(t, t.TempDir()+"/file", "")
	for path, want := range map[string]string{file: "invalid_argument", file + "no": "not_found", file + "/x": "internal", "~bob": "invalid_argument"} {
		s := tg.open("json", pb.FilesystemWatchDir, &pb.WatchDirRequest{Path: path})
		if end, ok := s.next(&pb.WatchDirResponse{}); ok || end != want {
			t.Errorf("WatchDir %s: %q, want %q", path, end, want)
		}
		if code := tg.call("proto", pb.FilesystemCreateWatcher, &pb.CreateWatcherRequest{Path: path}, &pb.CreateWatcherResponse{}); code != want {
			t.Errorf("CreateWatcher %s: %q, want %q", path, code, want)
		}
	}
	s := tg.open("json", pb.FilesystemWatchDir, &pb.WatchDirRequest{Path: t.TempDir()}, "Connect-Timeout-Ms", "50")
	s.next(&pb.WatchDirResponse{})
	if end, ok := s.next(&pb.WatchDirResponse{}); ok || end != "deadline_exceeded" {
		t.Errorf("timeout: %q", end)
	}
	s = tg.open("json", pb.FilesystemWatchDir, &pb.WatchDirRequest{Path: t.TempDir()}, "Keepalive-Ping-Interval", "0")
	for range 2 { // whether the start event still comes is left open
		if end, ok := s.next(&pb.WatchDirResponse{}); !ok {
			if end != errCut.Error() {
				t.Errorf("no interval: %q", end)
			}
			break
		}
	}
}

func TestWatcher(t *testing.T) {
	tg := newTarget(t)
	for _, c := range codecs {
		t.Run(string(c), func(t *testing.T) {
			dir := t.TempDir()
			created := &pb.CreateWatcherResponse{}
			tg.must(c, pb.FilesystemCreateWatcher, &pb.CreateWatcherRequest{Path: dir}, created)
			id := created.GetWatcherId()
			if len(id) != 21 || id[0] != 'w' {
				t.Errorf("id %q", id)
			}
			change(t, dir)
			var events []*pb.FilesystemEvent
			drain := func() []*pb.FilesystemEvent {
				res := &pb.GetWatcherEventsResponse{}
				tg.must(c, pb.FilesystemGetWatcherEvents, &pb.GetWatcherEventsRequest{WatcherId: id}, res)
				return res.GetEvents()
			}
			eventually(t, "all events", func() bool {
				events = append(events, drain()...)
				return len(happened(events)) >= len(changes)
			})
			if diff := cmp.Diff(changes, happened(events)); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			if again := drain(); len(again) > 0 {
				t.Errorf("drained twice: %v", again)
			}
			tg.must(c, pb.FilesystemRemoveWatcher, &pb.RemoveWatcherRequest{WatcherId: id}, &pb.RemoveWatcherResponse{})
			if code := tg.call(c, pb.FilesystemRemoveWatcher, &pb.RemoveWatcherRequest{WatcherId: id}, &pb.RemoveWatcherResponse{}); code != "not_found" {
				t.Errorf("removed twice: %q", code)
			}
			if code := tg.call(c, pb.FilesystemGetWatcherEvents, &pb.GetWatcherEventsRequest{WatcherId: id}, &pb.GetWatcherEventsResponse{}); code != "not_found" {
				t.Errorf("events after removal: %q", code)
			}
		})
	}
}
