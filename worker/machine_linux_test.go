package worker

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMemTotal(t *testing.T) {
	for text, want := range map[string]int64{
		"MemTotal:       24684916 kB\nMemFree:        1 kB\n": 24684916 << 10,
		"MemFree: 1 kB\nMemTotal: 5 kB":                       5 << 10,
		"":                                                    0, "MemTotal: many kB\n": 0, "MemTotal: -1 kB\n": 0, "MemTotal: 9223372036854775807 kB\n": 0,
	} {
		if got := memTotal([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

func TestCgroupLimits(t *testing.T) {
	for text, want := range map[string][]string{
		"0::/\n":                      {"/sys/fs/cgroup/memory.max"},
		"0::/a/b\n":                   {"/sys/fs/cgroup/a/b/memory.max", "/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup/memory.max"},
		"0::/../up\n":                 {"/sys/fs/cgroup/up/memory.max", "/sys/fs/cgroup/memory.max"},
		"9:name=systemd:/x\n":         nil,
		"4:cpu,memory:/m\n1:cpu:/c\n": {"/sys/fs/cgroup/memory/m/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"},
		"":                            nil, "nonsense": nil, "0::relative": nil, "::": nil,
	} {
		if diff := cmp.Diff(want, cgroupLimits([]byte(text))); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
	if machineMemory() <= 0 {
		t.Error("this machine has no memory")
	}
}
