package envd

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
)

// settings are what a request to /init can change. A value is never modified,
// only replaced.
type settings struct {
	token   string
	env     map[string]string
	user    string
	workdir string
}

func newSettings(opts Options) settings {
	return settings{token: opts.Token, env: maps.Clone(opts.Env), user: opts.User, workdir: opts.Workdir}
}

func (d *Daemon) current() settings {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.settings
}

// initRequest is what the control plane tells a daemon when its sandbox starts.
// The fields about clocks, certificates and mounts are not here.
type initRequest struct {
	Token   string             `json:"accessToken"`
	Env     *map[string]string `json:"envVars"` // replaces all, where present
	User    string             `json:"defaultUser"`
	Workdir string             `json:"defaultWorkdir"`
}

// maxInit bounds the body of a request to /init, in bytes.
const maxInit = 16 << 20

func (d *Daemon) initialize(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Envd-Version", d.version)
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxInit))
	var req initRequest
	if err == nil && len(body) > 0 {
		err = json.Unmarshal(body, &req)
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if !d.apply(req) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "the access token may not be changed")
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
}

// apply takes over the settings, unless the token that was set before differs.
func (d *Daemon) apply(req initRequest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &d.settings
	if s.token != "" && !same(s.token, req.Token) {
		return false
	}
	s.token = req.Token
	if req.Env != nil {
		s.env = replaceEnv(s.env, *req.Env)
	}
	if req.User != "" {
		s.user = req.User
	}
	if req.Workdir != "" {
		s.workdir = req.Workdir
	}
	return true
}

// replaceEnv returns the new variables with those of the old ones that are the
// daemon's own.
func replaceEnv(old, now map[string]string) map[string]string {
	env := make(map[string]string, len(now)+1)
	maps.Copy(env, now)
	for _, own := range []string{"E2B_SANDBOX", "E2B_SANDBOX_ID", "E2B_TEMPLATE_ID", "E2B_EVENTS_ADDRESS"} {
		if v, ok := old[own]; ok {
			env[own] = v
		}
	}
	return env
}
