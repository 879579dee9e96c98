package envd

import (
	"encoding/json"
	"math"
	"net/http"
)

func health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "")
	w.WriteHeader(http.StatusNoContent)
}

func (d *Daemon) envs(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	env := d.current().env
	if env == nil {
		env = map[string]string{}
	}
	writeJSON(w, env)
}

func (d *Daemon) metrics(w http.ResponseWriter, _ *http.Request) {
	u := d.machine.Usage()
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, struct {
		Time        int64   `json:"ts"` // Unix seconds
		CPUs        int     `json:"cpu_count"`
		CPUPercent  float64 `json:"cpu_used_pct"`
		MemTotalMiB int64   `json:"mem_total_mib"`
		MemUsedMiB  int64   `json:"mem_used_mib"`
		MemTotal    int64   `json:"mem_total"`
		MemUsed     int64   `json:"mem_used"`
		MemCache    int64   `json:"mem_cache"`
		DiskUsed    int64   `json:"disk_used"`
		DiskTotal   int64   `json:"disk_total"`
	}{
		u.Time.Unix(), u.CPUs, math.Round(u.CPUPercent*100) / 100, u.MemTotal >> 20, u.MemUsed >> 20,
		u.MemTotal, u.MemUsed, u.MemCache, u.DiskUsed, u.DiskTotal,
	})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// writeError answers as the daemon does outside its procedures: with a number
// for a code.
func writeError(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{status, err.Error()})
}
