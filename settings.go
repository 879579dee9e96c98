package remote

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Setting is one setting of a [Config]: its key in JSON, its flag, its
// default.
type Setting struct {
	Key     string   // in JSON, as "memory_gb"
	Aliases []string // further keys that mean the same
	Flag    string   // without dashes, as "e2b-mem"; empty means that it has none
	Default string   // in words
	Usage   string   // one line; a word in backquotes names the flag's value

	field func(*Config) settingValue
}

// settingValue is a field of a Config that can be set.
type settingValue interface {
	flag.Value
	setJSON(raw json.RawMessage) error
	plain() any // for JSON
}

// Settings lists the settings that have a key in JSON. The decoder of
// [Config], the flags and the documentation are all made from this one table.
func Settings() []Setting {
	return []Setting{
		{Key: "template", Flag: "e2b-template", Default: defaultTemplate, Usage: "`template` of the sandbox: a name or an id",
			field: func(c *Config) settingValue { return (*textValue)(&c.Template) }},
		{Key: "image", Flag: "e2b-image", Default: "none", Usage: "container `image` to make the sandbox's template from, as python:3.12",
			field: func(c *Config) settingValue { return (*textValue)(&c.Image) }},
		{Key: "packages", Flag: "e2b-package", Default: "none", Usage: "`requirement` of a Python package, as pandas>=2, for drivers in Python; may be repeated",
			field: func(c *Config) settingValue { return (*namesValue)(&c.Packages) }},
		{Key: "allow_template_build", Flag: "e2b-allow-template-build", Default: "false", Usage: "allow templates with the run's size, image and packages to be built on the account",
			field: func(c *Config) settingValue { return (*boolValue)(&c.AllowTemplateBuild) }},
		{Key: "cpu", Flag: "e2b-cpu", Default: "what the template has", Usage: "`cores` of the sandbox",
			field: func(c *Config) settingValue { return (*countValue)(&c.CPU) }},
		{Key: "memory_gb", Aliases: []string{"mem_gb", "memory"}, Flag: "e2b-mem", Default: "what the template has", Usage: "memory of the sandbox in `GiB`",
			field: func(c *Config) settingValue { return (*sizeValue)(&c.MemoryGB) }},
		{Key: "timeout", Flag: "e2b-timeout", Default: strconv.Itoa(int(defaultTimeout / time.Second)), Usage: "`seconds` that the whole run may take, or a duration as 10m",
			field: func(c *Config) settingValue { return (*secondsValue)(&c.Timeout) }},
		{Key: "lease", Flag: "e2b-lease", Default: strconv.Itoa(int(defaultLease / time.Second)), Usage: "`seconds` that a sandbox outlives a host that dies, or a duration",
			field: func(c *Config) settingValue { return (*secondsValue)(&c.Lease) }},
		{Key: "on_host_loss", Flag: "e2b-on-host-loss", Default: string(Kill), Usage: "what becomes of a sandbox whose host has died, `" + string(Kill) + "` or " + string(Pause),
			field: func(c *Config) settingValue { return (*textValue)(&c.OnHostLoss) }},
		{Key: "max_sandboxes", Flag: "e2b-max-sandboxes", Default: "no limit", Usage: "`sandboxes` that run at once; further runs wait",
			field: func(c *Config) settingValue { return (*countValue)(&c.MaxSandboxes) }},
		{Key: "create_rate", Flag: "e2b-create-rate", Default: "no limit", Usage: "`sandboxes` that are made in a second, as 0.5; further runs wait",
			field: func(c *Config) settingValue { return (*rateValue)(&c.CreateRate) }},
		{Key: "create_wait", Flag: "e2b-create-wait", Default: "the timeout", Usage: "`seconds` that a run may wait for its sandbox to be let in, or a duration",
			field: func(c *Config) settingValue { return (*secondsValue)(&c.CreateWait) }},
		{Key: "max_cost", Flag: "e2b-max-cost", Default: "no limit", Usage: "US `dollars` that the run's sandbox may cost, by estimate; then the run is stopped",
			field: func(c *Config) settingValue { return (*priceValue)(&c.MaxCost) }},
		{Key: "max_duration", Flag: "e2b-max-duration", Default: "no limit", Usage: "`seconds` that the run's sandbox may run, or a duration; then the run is stopped",
			field: func(c *Config) settingValue { return (*secondsValue)(&c.MaxDuration) }},
		{Key: "price_vcpu_second", Flag: "e2b-price-vcpu", Default: "E2B's, unless price_gib_second is set", Usage: "US `dollars` for a second of a core",
			field: func(c *Config) settingValue { return (*priceValue)(&c.Prices.VCPUSecond) }},
		{Key: "price_gib_second", Flag: "e2b-price-gib", Default: "E2B's, unless price_vcpu_second is set", Usage: "US `dollars` for a second of a GiB of memory",
			field: func(c *Config) settingValue { return (*priceValue)(&c.Prices.GiBSecond) }},
		{Key: "step_timeout", Default: "none but the run's", Usage: "`seconds` that each step may take",
			field: func(c *Config) settingValue { return (*secondsValue)(&c.StepTimeout) }},
		{Key: "install_deps", Flag: "e2b-install-deps", Default: "false", Usage: "allow packages that drivers in Python need to be installed where the run happens",
			field: func(c *Config) settingValue { return (*boolValue)(&c.InstallDeps) }},
		{Key: "wheelhouse", Flag: "e2b-wheelhouse", Default: "in the user's cache directory", Usage: "`directory` that keeps installed packages for sandboxes to come, or off",
			field: func(c *Config) settingValue { return (*textValue)(&c.Wheelhouse) }},
		{Key: "python", Flag: "e2b-python", Default: "python3", Usage: "`interpreter` for drivers in Python, where the run happens",
			field: func(c *Config) settingValue { return (*textValue)(&c.Python) }},
		{Key: "python_drivers", Default: "none", Usage: "drivers in Python, a list as in a manifest",
			field: func(c *Config) settingValue { return (*driversValue)(&c.PythonDrivers) }},
		{Key: "egress", Flag: "e2b-egress", Default: string(EgressLimited), Usage: "what a sandbox may reach: `" + string(EgressLimited) + "` to what the run needs, " + string(EgressRequired) + " to fail where that cannot be, or " + string(EgressOpen),
			field: func(c *Config) settingValue { return (*textValue)(&c.Egress) }},
		{Key: "allow_hosts", Flag: "e2b-allow-host", Default: "none", Usage: "let the sandbox reach this `host` too: a name, *.name, address or network, or name:port; may be repeated",
			field: func(c *Config) settingValue { return (*namesValue)(&c.AllowHosts) }},
		{Key: "env", Flag: "e2b-env", Default: "none", Usage: "pass a variable to the run, as `NAME=VALUE`; may be repeated",
			field: func(c *Config) settingValue { return (*pairsValue)(&c.Env) }},
		{Key: "pass_env", Flag: "e2b-pass-env", Default: "none", Usage: "pass this variable of the environment, by its `NAME`; may be repeated",
			field: func(c *Config) settingValue { return (*namesValue)(&c.PassEnv) }},
		{Key: "concurrency", Default: "the worker's cores", Usage: "steps at a time",
			field: func(c *Config) settingValue { return (*countValue)(&c.Concurrency) }},
		{Key: "on_failure", Default: string(StopAll), Usage: "what a failed step stops: " + string(StopAll) + " or " + string(StopDependents),
			field: func(c *Config) settingValue { return (*textValue)(&c.OnFailure) }},
		{Key: "restarts", Flag: "e2b-restarts", Default: "0", Usage: "`times` that a worker which dies is started again, to go on with the run",
			field: func(c *Config) settingValue { return (*countValue)(&c.Restarts) }},
		{Key: "memory_budget", Flag: "e2b-memory-budget", Default: "half of the machine's memory", Usage: "`bytes` that tables may take in the worker's memory, as 512MiB; what is beyond goes to its disk",
			field: func(c *Config) settingValue { return (*bytesValue)(&c.MemoryBudget) }},
		{Key: "max_events", Default: strconv.Itoa(defaultMaxEvents), Usage: "`lines` of events, metrics and log that a run may write; what is beyond is dropped",
			field: func(c *Config) settingValue { return (*countValue)(&c.MaxEvents) }},
		{Key: "max_event_bytes", Default: strconv.FormatInt(defaultMaxEventBytes, 10), Usage: "`bytes` of them",
			field: func(c *Config) settingValue { return (*bytesValue)(&c.MaxEventBytes) }},
		{Key: "max_artifacts", Default: strconv.Itoa(defaultMaxArtifacts), Usage: "`files` that a run may bring home; what is beyond is skipped",
			field: func(c *Config) settingValue { return (*countValue)(&c.MaxArtifacts) }},
		{Key: "max_artifact_bytes", Default: strconv.FormatInt(defaultMaxArtifactBytes, 10), Usage: "`bytes` of them",
			field: func(c *Config) settingValue { return (*bytesValue)(&c.MaxArtifactBytes) }},
		{Key: "artifact_include", Flag: "e2b-artifact-include", Default: "everything", Usage: "bring home only artifacts that match this `glob`, as step/**/*.csv; may be repeated",
			field: func(c *Config) settingValue { return (*namesValue)(&c.Artifacts.Include) }},
		{Key: "artifact_exclude", Flag: "e2b-artifact-exclude", Default: "none", Usage: "leave artifacts behind that match this `glob`; may be repeated",
			field: func(c *Config) settingValue { return (*namesValue)(&c.Artifacts.Exclude) }},
		{Key: "max_artifact_file_bytes", Flag: "e2b-artifact-max-bytes", Default: "E2B_ARTIFACT_MAX_MB, or no limit", Usage: "`bytes` of an artifact that is brought home; larger ones are skipped",
			field: func(c *Config) settingValue { return (*bytesValue)(&c.Artifacts.MaxFileBytes) }},
		{Key: "verify", Flag: "e2b-verify", Default: string(VerifySHA256), Usage: "how artifacts are verified, `" + string(VerifySHA256) + "`, " + string(VerifyXXH3) + " or " + string(VerifyNone),
			field: func(c *Config) settingValue { return (*textValue)(&c.Verify) }},
		{Key: "root", Default: "/tmp/osiris", Usage: "directory in the sandbox under which a run gets its folder",
			field: func(c *Config) settingValue { return (*textValue)(&c.Root) }},
		{Key: "api_key", Default: "E2B_API_KEY", Usage: "of the E2B account",
			field: func(c *Config) settingValue { return (*textValue)(&c.APIKey) }},
		{Key: "domain", Default: "E2B_DOMAIN, or e2b.app", Usage: "of the E2B deployment",
			field: func(c *Config) settingValue { return (*textValue)(&c.Domain) }},
		{Key: "api_url", Default: "E2B_API_URL, or by the domain", Usage: "of its control plane",
			field: func(c *Config) settingValue { return (*textValue)(&c.APIURL) }},
		{Key: "sandbox_url", Default: "E2B_SANDBOX_URL, or by the domain", Usage: "of its sandboxes",
			field: func(c *Config) settingValue { return (*textValue)(&c.SandboxURL) }},
		{Key: "gpu", Default: "0", Usage: "E2B has none: anything but 0 is refused",
			field: func(c *Config) settingValue { return (*countValue)(&c.GPU) }},
		{Key: "spot", Default: "false", Usage: "E2B has none: true is refused",
			field: func(c *Config) settingValue { return (*boolValue)(&c.Spot) }},
	}
}

// AddFlags defines the flags of [Settings] on fs, and --e2b, whose value it
// returns: whether the run is to happen in E2B. Flags that are not given leave
// c as it is. The set is of package flag; one of spf13/pflag takes it by
// AddGoFlagSet.
func (c *Config) AddFlags(fs *flag.FlagSet) (e2b *bool) {
	e2b = fs.Bool("e2b", false, "run in an E2B sandbox")
	for _, s := range Settings() {
		if s.Flag == "" {
			continue
		}
		usage := s.Usage
		if s.Default != "false" && s.Default != "none" {
			usage += " (default " + s.Default + ")"
		}
		fs.Var(s.field(c), s.Flag, usage)
	}
	return e2b
}

// UnmarshalJSON decodes an object with the keys of [Settings]. A key that is
// not among them, or stands twice, also under another name, is an error that
// matches [ErrInvalid]. Keys that are absent or null leave c as it is.
func (c *Config) UnmarshalJSON(b []byte) error {
	byKey := make(map[string]Setting)
	for _, s := range Settings() {
		for _, key := range append(s.Aliases, s.Key) {
			byKey[key] = s
		}
	}
	if string(bytes.TrimSpace(b)) == "null" {
		return nil // by convention of encoding/json
	}
	seen := make(map[string]string) // setting, to the key it was given by
	next := *c
	err := eachKey(b, func(key string, raw json.RawMessage) error {
		s, ok := byKey[key]
		if !ok {
			return fmt.Errorf("unknown key %q; known are %s", key, strings.Join(slices.Sorted(maps.Keys(byKey)), ", "))
		}
		if other, ok := seen[s.Key]; ok {
			return fmt.Errorf("keys %q and %q set the same", other, key)
		}
		seen[s.Key] = key
		if string(raw) == "null" {
			return nil
		}
		if err := s.field(&next).setJSON(raw); err != nil {
			return fmt.Errorf("key %q: %w", key, err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remote: %w: config: %w", ErrInvalid, err)
	}
	*c = next
	return nil
}

// MarshalJSON writes the settings that are not zero, with the keys of
// [Settings], but for those that hold secrets: api_key and env. What else a
// Config has, as Drivers, is not written.
func (c Config) MarshalJSON() ([]byte, error) {
	out := make(map[string]any)
	for _, s := range Settings() {
		v := s.field(&c).plain()
		if s.Key == "api_key" || s.Key == "env" || reflect.ValueOf(v).IsZero() {
			continue
		}
		out[s.Key] = v
	}
	return json.Marshal(out)
}

// eachKey calls f with every key of a JSON object, in order.
func eachKey(b []byte, f func(key string, raw json.RawMessage) error) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return errors.Join(errors.New("want an object"), err)
	}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return err
		}
		if err := f(t.(string), raw); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil && err != io.EOF {
		return err
	}
	return nil
}

// decodeJSON decodes a value whose kind is named in the error. What was given
// is not in it: it may be a secret.
func decodeJSON(raw json.RawMessage, v any, want string) error {
	if json.Unmarshal(raw, v) != nil {
		return fmt.Errorf("want %s", want)
	}
	return nil
}

type textValue string

func (v *textValue) String() string     { return string(*v) }
func (v *textValue) Set(s string) error { *v = textValue(s); return nil }
func (v *textValue) plain() any         { return string(*v) }
func (v *textValue) setJSON(raw json.RawMessage) error {
	return decodeJSON(raw, (*string)(v), "a string")
}

type boolValue bool

func (v *boolValue) plain() any     { return bool(*v) }
func (v *boolValue) String() string { return strconv.FormatBool(bool(*v)) }
func (v *boolValue) setJSON(raw json.RawMessage) error {
	return decodeJSON(raw, (*bool)(v), "true or false")
}
func (v *boolValue) IsBoolFlag() bool { return true }

func (v *boolValue) Set(s string) error {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return errors.New("want true or false")
	}
	*v = boolValue(b)
	return nil
}

type countValue int

func (v *countValue) plain() any                        { return int(*v) }
func (v *countValue) String() string                    { return strconv.Itoa(int(*v)) }
func (v *countValue) setJSON(raw json.RawMessage) error { return v.Set(string(raw)) }

func (v *countValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return errors.New("want a whole number, 0 or more")
	}
	*v = countValue(n)
	return nil
}

type bytesValue int64

func (v *bytesValue) plain() any     { return int64(*v) }
func (v *bytesValue) String() string { return strconv.FormatInt(int64(*v), 10) }

// setJSON takes a number of bytes, or a string as "512MiB".
func (v *bytesValue) setJSON(raw json.RawMessage) error {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return v.Set(text)
	}
	return v.Set(string(raw))
}

func (v *bytesValue) Set(s string) error {
	digits := strings.TrimRight(s, "KMGTiB")
	unit := int64(1)
	switch s[len(digits):] {
	case "", "B":
	case "KiB":
		unit = 1 << 10
	case "MiB":
		unit = 1 << 20
	case "GiB":
		unit = 1 << 30
	case "TiB":
		unit = 1 << 40
	default:
		unit = 0
	}
	n, err := strconv.ParseInt(strings.TrimRight(digits, " "), 10, 64)
	if err != nil || n < 0 || unit == 0 || n > math.MaxInt64/unit {
		return errors.New("want a whole number of bytes, 0 or more, or one with a unit, as 512MiB")
	}
	*v = bytesValue(n * unit)
	return nil
}

type sizeValue float64

func (v *sizeValue) plain() any                        { return float64(*v) }
func (v *sizeValue) String() string                    { return strconv.FormatFloat(float64(*v), 'g', -1, 64) }
func (v *sizeValue) setJSON(raw json.RawMessage) error { return v.Set(string(raw)) }

func (v *sizeValue) Set(s string) error {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 0 && f <= 1<<20) {
		return errors.New("want a number of GiB, 0 or more")
	}
	*v = sizeValue(f)
	return nil
}

type rateValue float64

func (v *rateValue) plain() any                        { return float64(*v) }
func (v *rateValue) String() string                    { return (*sizeValue)(v).String() }
func (v *rateValue) setJSON(raw json.RawMessage) error { return v.Set(string(raw)) }

func (v *rateValue) Set(s string) error {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 0 && f <= 1e6) {
		return errors.New("want a number a second, 0 or more")
	}
	*v = rateValue(f)
	return nil
}

type priceValue float64

func (v *priceValue) plain() any                        { return float64(*v) }
func (v *priceValue) String() string                    { return (*sizeValue)(v).String() }
func (v *priceValue) setJSON(raw json.RawMessage) error { return v.Set(string(raw)) }

func (v *priceValue) Set(s string) error {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 0 && f <= 1e9) {
		return errors.New("want a number of US dollars, 0 or more")
	}
	*v = priceValue(f)
	return nil
}

type secondsValue time.Duration

// setJSON takes a number of seconds, or a string as "10m".
func (v *secondsValue) setJSON(raw json.RawMessage) error {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return v.Set(text)
	}
	return v.setSeconds(string(raw))
}

func (v *secondsValue) plain() any { return time.Duration(*v).Seconds() }

// String is empty for zero, so that flag packages print no second default.
func (v *secondsValue) String() string {
	if *v == 0 {
		return ""
	}
	return time.Duration(*v).String()
}

func (v *secondsValue) Set(s string) error {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		*v = secondsValue(d)
		return nil
	}
	return v.setSeconds(s)
}

func (v *secondsValue) setSeconds(s string) error {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 0 && f <= math.MaxInt32) {
		return errors.New("want a number of seconds, 0 or more, or a duration as \"10m\"")
	}
	*v = secondsValue(math.Round(f * float64(time.Second)))
	return nil
}

type namesValue []string

func (v *namesValue) plain() any         { return []string(*v) }
func (v *namesValue) String() string     { return strings.Join(*v, ",") }
func (v *namesValue) Set(s string) error { *v = append(slices.Clip(*v), s); return nil }

func (v *namesValue) setJSON(raw json.RawMessage) error {
	var names []string
	if err := decodeJSON(raw, &names, "a list of names"); err != nil {
		return err
	}
	*v = names
	return nil
}

// driversValue is a list of declared drivers.
type driversValue []PythonDriver

func (v *driversValue) plain() any { return []PythonDriver(*v) }

// String names the drivers.
func (v *driversValue) String() string {
	var names []string
	for _, d := range *v {
		names = append(names, d.Name)
	}
	return strings.Join(names, ",")
}

// Set takes a list in JSON.
func (v *driversValue) Set(s string) error { return v.setJSON(json.RawMessage(s)) }

func (v *driversValue) setJSON(raw json.RawMessage) error {
	var drivers []PythonDriver
	if err := json.Unmarshal(raw, &drivers); err != nil {
		return fmt.Errorf("not a list of drivers in Python: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	*v = drivers
	return nil
}

type pairsValue map[string]string

func (v *pairsValue) plain() any { return map[string]string(*v) }

// String names the variables; their values may be secret.
func (v *pairsValue) String() string { return strings.Join(slices.Sorted(maps.Keys(*v)), ",") }

// Set never fails: package flag would print what was given, which may be a
// secret. A pair without a name is refused with the rest of the Config.
func (v *pairsValue) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		name, value = "", ""
	}
	next := maps.Clone(*v)
	if next == nil {
		next = make(pairsValue)
	}
	next[name] = value
	*v = next
	return nil
}

func (v *pairsValue) setJSON(raw json.RawMessage) error {
	var pairs map[string]string
	if err := decodeJSON(raw, &pairs, "an object of names and values"); err != nil {
		return err
	}
	*v = pairs
	return nil
}
