package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/osiris-pipelines/remote/connections"
	"github.com/osiris-pipelines/remote/e2b"
	"github.com/osiris-pipelines/remote/internal/hostname"
	"github.com/osiris-pipelines/remote/secrets"
	"github.com/osiris-pipelines/remote/worker"
)

// Egress says what a run's sandbox may reach.
type Egress string

// The policies. Where the network is limited, a sandbox reaches the hosts of
// the connections and configs of its steps, package indexes with
// Config.InstallDeps, and Config.AllowHosts; [E2BTransparentProxy.Network]
// shows what that is.
const (
	EgressLimited  Egress = "limited"  // limited; where the server cannot do that, the run goes on, with a warning and an event
	EgressRequired Egress = "required" // limited; where the server cannot do that, the run fails, with ErrUnsupported where it took the rules and did nothing
	EgressOpen     Egress = "open"     // not limited
)

const (
	// E2B's sandboxes ask this nameserver, and it is allowed without our help
	// where a name is (infra: pkg/sandbox-network/firewall.go,
	// internal/orchestrator/create_instance.go).
	nameserver = "8.8.8.8"

	// refreshEvery is how often the names of hosts with rules by address are
	// looked up again. A fifth more or less keeps runs from doing it at once.
	refreshEvery  = time.Minute
	refreshJitter = 5

	lookupPatience = 10 * time.Second // for one name
	lookupTries    = 2

	// maxAddresses bounds the rules by address of a run. What is looked up
	// beyond that is not added.
	maxAddresses = 1000
)

// NetworkRules is what a sandbox may reach, and why.
type NetworkRules struct {
	Policy   Egress        `json:"policy"`
	Allow    []NetworkRule `json:"allow"`              // by target
	Deny     []string      `json:"deny"`               // what is denied but for Allow; empty means that all may be reached
	Warnings []string      `json:"warnings,omitempty"` // of what could not be made out
}

// NetworkRule allows a sandbox to reach something. E2B's rules know no ports.
type NetworkRule struct {
	Target  string          `json:"target"` // a name, "*.example.com", an address or a network
	Reasons []NetworkReason `json:"reasons"`
}

// NetworkReason is what a rule is for. It holds no secret value.
type NetworkReason struct {
	Host       string `json:"host"`                 // with its port where that is known
	Step       string `json:"step,omitempty"`       // empty where Config asks for it
	Connection string `json:"connection,omitempty"` // as "@mysql.main"
	Field      string `json:"field"`                // that names the host
}

func (r NetworkReason) String() string {
	var b strings.Builder
	b.WriteString(r.Host)
	b.WriteString(": ")
	if r.Step != "" {
		fmt.Fprintf(&b, "step %s, ", r.Step)
	}
	if r.Connection != "" {
		fmt.Fprintf(&b, "%s, ", r.Connection)
	}
	return b.String() + r.Field
}

// String shows the rules, a line each, for a person.
func (r NetworkRules) String() string {
	if r.Policy == "" { // as beside an error
		return "network: not known\n"
	}
	var b strings.Builder
	if len(r.Deny) == 0 {
		fmt.Fprintf(&b, "network: open (%s)\n", r.Policy)
		return b.String()
	}
	switch n := len(r.Allow); n {
	case 0:
		fmt.Fprintf(&b, "network: nothing (%s)\n", r.Policy)
	case 1:
		fmt.Fprintf(&b, "network: nothing but 1 target (%s)\n", r.Policy)
	default:
		fmt.Fprintf(&b, "network: nothing but %d targets (%s)\n", n, r.Policy)
	}
	for _, rule := range r.Allow {
		for i, reason := range rule.Reasons {
			target := rule.Target
			if i > 0 {
				target = ""
			}
			fmt.Fprintf(&b, "  %-40s %s\n", target, reason)
		}
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "  warning: %s\n", w)
	}
	return b.String()
}

// targets returns what is allowed.
func (r NetworkRules) targets() []string {
	list := make([]string, 0, len(r.Allow))
	for _, rule := range r.Allow {
		list = append(list, rule.Target)
	}
	return list
}

// network is the rules as E2B takes them.
func (r NetworkRules) network() e2b.Network {
	return e2b.Network{AllowOut: r.targets(), DenyOut: slices.Clone(r.Deny)}
}

// lookup finds the addresses of a name.
type lookup func(ctx context.Context, name string) ([]netip.Addr, error)

func systemLookup(ctx context.Context, name string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
}

// egressInput is what rules are made from.
type egressInput struct {
	policy     Egress
	steps      []egressStep
	allow      []string // Config.AllowHosts
	indexes    []string // URLs of package indexes
	selfHosted bool     // private addresses may be reached where Config.AllowHosts has them
}

// egressStep is a step, as far as it names hosts.
type egressStep struct {
	id         string
	connection string         // as "@mysql.main"; empty means none
	family     string         // of the connection, or of the driver's name
	fields     map[string]any // of the connection, in plain
	config     map[string]any
	redact     *secrets.Redactor // knows the values in fields
	declare    func(config map[string]any) ([]string, error)
}

// neededHost is a host that a run connects to.
type neededHost struct {
	endpoint
	pattern string       // "*.example.com" or "*" in place of the endpoint
	network netip.Prefix // in place of the endpoint
	name    bool         // by its name
	address bool         // by its addresses
	must    bool         // it is an error if it has none
	reason  NetworkReason
}

// fault makes an error of a host.
func (r NetworkReason) fault(why string) *HostError {
	return &HostError{Host: clipHost(r.Host), Step: r.Step, Connection: r.Connection, Field: r.Field, Reason: why}
}

// needed lists the hosts that a run connects to, and what could not be made
// out. It looks nothing up.
func (in *egressInput) needed() (hosts []neededHost, warnings []string, err error) {
	for _, s := range in.steps {
		found, warned, err := s.hosts()
		if err != nil {
			return nil, nil, err
		}
		hosts, warnings = append(hosts, found...), append(warnings, warned...)
	}
	for _, index := range in.indexes {
		e, err := parseURL(index)
		reason := NetworkReason{Host: e.String(), Field: "Config.InstallDeps"}
		if err != nil {
			reason.Host = "" // it may hold a password
			return nil, nil, reason.fault("a package index " + err.Error())
		}
		hosts = append(hosts, need(e, reason))
	}
	for _, entry := range in.allow {
		h, err := parseAllowed(entry)
		if err != nil {
			return nil, nil, err
		}
		hosts = append(hosts, h)
	}
	return hosts, warnings, nil
}

func need(e endpoint, reason NetworkReason) neededHost {
	return neededHost{endpoint: e, name: e.byName() && !isAddress(e.host) && e.port != 0, address: e.byAddress(), must: true, reason: reason}
}

func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// hosts finds those of a step: those that its driver declares, or those that
// its connection and its config have fields for.
func (s *egressStep) hosts() (hosts []neededHost, warnings []string, err error) {
	if s.declare != nil {
		return s.declared()
	}
	found, err := findHosts(s.family, s.fields, 0)
	if err != nil {
		return nil, nil, s.blame(err, s.connection)
	}
	for _, f := range found {
		hosts = append(hosts, need(f.endpoint, NetworkReason{Host: f.String(), Step: s.id, Connection: s.connection, Field: f.field}))
	}
	found, err = findHosts(s.family, s.config, portOf(s.fields))
	if err != nil {
		// A driver may mean something else by the field.
		return hosts, []string{strings.TrimPrefix(s.blame(err, "").Error(), "remote: ") + "; if it names a host, allow that by Config.AllowHosts"}, nil
	}
	for _, f := range found {
		hosts = append(hosts, need(f.endpoint, NetworkReason{Host: f.String(), Step: s.id, Field: f.field}))
	}
	return hosts, nil, nil
}

// blame completes the error of findHosts.
func (s *egressStep) blame(err error, connection string) error {
	var e *HostError
	if errors.As(err, &e) {
		e.Step, e.Connection = s.id, connection
		if strings.Contains(e.Host, "${") {
			e.Reason = "has a placeholder that nothing fills; set the variable, and pass it by Config.PassEnv or Config.Env where the driver fills it"
		}
	}
	return err
}

// declared asks the driver.
func (s *egressStep) declared() (hosts []neededHost, warnings []string, err error) {
	config := maps.Clone(s.config)
	if config == nil {
		config = make(map[string]any)
	}
	if s.fields != nil {
		config["resolved_connection"] = s.fields
	}
	reason := NetworkReason{Step: s.id, Connection: s.connection, Field: "driver"}
	list, err := guarded("it", func() ([]string, error) { return s.declare(config) })
	if err != nil {
		return nil, nil, reason.fault("the driver cannot tell its hosts: " + s.redact.String(err.Error()))
	}
	for _, entry := range list {
		reason.Host = ""
		if strings.Contains(entry, "://") {
			eps, err := parseDSN(entry)
			if errors.Is(err, errNoHost) {
				continue
			}
			if err != nil {
				return nil, nil, reason.fault("what the driver declares " + err.Error())
			}
			for _, e := range eps {
				reason.Host = e.String()
				hosts = append(hosts, need(e, reason))
			}
			continue
		}
		h, err := parseEntry(entry)
		if err != nil {
			return nil, nil, reason.fault("what the driver declares " + err.Error())
		}
		reason.Host = h.reason.Host
		h.reason = reason
		hosts = append(hosts, h)
	}
	return hosts, nil, nil
}

// parseAllowed takes an entry of Config.AllowHosts.
func parseAllowed(entry string) (neededHost, error) {
	h, err := parseEntry(entry)
	h.reason.Field = "Config.AllowHosts"
	if err != nil {
		h.reason.Host = entry
		return h, h.reason.fault(err.Error())
	}
	return h, nil
}

// parseEntry takes a name, "*.example.com", an address, a network, or a name or
// address with a port.
func parseEntry(entry string) (neededHost, error) {
	entry = strings.TrimSpace(entry)
	h := neededHost{reason: NetworkReason{Host: strings.ToLower(entry)}}
	if suffix, ok := strings.CutPrefix(entry, "*."); ok || entry == "*" {
		if entry != "*" && !hostname.Valid(suffix) {
			return h, errors.New("is no name with a star before it")
		}
		h.pattern, h.name = strings.ToLower(entry), true
		return h, nil
	}
	if strings.Contains(entry, "/") {
		p, err := netip.ParsePrefix(entry)
		switch {
		case err != nil:
			return h, errors.New("is no network; neither a URL nor a path can be allowed, only a host")
		case !p.Addr().Is4():
			return h, errors.New("is of IPv6, and E2B's sandboxes have only IPv4")
		case p.Addr().IsUnspecified() && p.Bits() != 0:
			return h, errors.New("begins at 0.0.0.0, which E2B takes only for everything, as 0.0.0.0/0")
		}
		h.network = p.Masked()
		return h, nil
	}
	e, err := parseHostPort(entry, 0)
	if err != nil {
		return h, err
	}
	h.endpoint, h.reason.Host = e, e.String()
	h.name = e.byName() && !isAddress(e.host)
	h.address, h.must = true, !h.name
	return h, nil
}

// allowedPrivately reports whether the user has named a private host himself.
func (in *egressInput) allowedPrivately(host string, addr netip.Addr) bool {
	if !in.selfHosted {
		return false
	}
	for _, entry := range in.allow {
		h, err := parseEntry(entry)
		if err == nil && (h.host != "" && h.host == host || h.network.IsValid() && h.network.Contains(addr)) {
			return true
		}
	}
	return false
}

// egressPlan is what a run's sandbox is to reach. Its rules grow while the run
// lives, as names get other addresses.
type egressPlan struct {
	in       egressInput
	warnings []string
	lookup   lookup
	again    func() egressInput // as its connections are now; nil where they do not change

	mu    sync.Mutex
	hosts []neededHost
	found map[string][]netip.Addr // by name: all that were ever found, in order
	kept  []string                // that a dead host has allowed
}

// planEgress makes the rules of a run. Names that need rules by address are
// looked up. The error is a [*HostError], or ctx's.
func planEgress(ctx context.Context, in egressInput, look lookup) (*egressPlan, error) {
	p := &egressPlan{in: in, lookup: look, found: make(map[string][]netip.Addr)}
	if in.policy == EgressOpen {
		return p, nil
	}
	var err error
	if p.hosts, p.warnings, err = in.needed(); err != nil {
		return nil, err
	}
	for i := range p.hosts {
		if h := &p.hosts[i]; h.pattern == "*" || h.network.IsValid() && h.network.Bits() == 0 {
			p.warnings = append(p.warnings, fmt.Sprintf("%s: %s allows everything there is to reach", h.reason.Field, h.reason.Host))
		}
		if err := p.settle(ctx, &p.hosts[i]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// settle checks that a host can be reached, and looks its name up where it
// takes addresses.
func (p *egressPlan) settle(ctx context.Context, h *neededHost) error {
	if h.pattern != "" {
		return nil
	}
	if h.network.IsValid() {
		if why := addressFault(h.network.Addr()); why != "" && h.network.Bits() != 0 && !p.in.selfHosted {
			return h.reason.fault(why)
		}
		return nil
	}
	if addr, err := netip.ParseAddr(h.host); err == nil {
		if why := addressFault(addr); why != "" && (addr.Is6() || !p.in.allowedPrivately(h.host, addr)) {
			return h.reason.fault(why + privateHint(p.in.selfHosted))
		}
		return nil
	}
	if why := nameFault(h.host); why != "" && !p.in.allowedPrivately(h.host, netip.Addr{}) {
		return h.reason.fault(why + privateHint(p.in.selfHosted))
	}
	if !h.address {
		return nil
	}
	if _, done := p.found[h.host]; done {
		return nil
	}
	addrs, err := p.addresses(ctx, h.host)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil && !h.must { // the rule for its name is there
		p.warnings = append(p.warnings, fmt.Sprintf("%s: %s: %v; it can be reached on ports 80 and 443 alone", h.reason.Field, h.host, err))
		return nil
	}
	if err != nil {
		why := err.Error()
		if errors.Unwrap(err) != nil { // it was not found, which is not for AllowHosts to mend
			why += "; check the name, or give an address in its place"
		}
		return h.reason.fault(why)
	}
	p.found[h.host] = addrs
	return nil
}

func privateHint(selfHosted bool) string {
	if selfHosted {
		return "; if sandboxes of this server can reach it, name it in Config.AllowHosts"
	}
	return "; use an address on the internet, or run it where that is reached"
}

// addresses looks a name up, for the addresses that can be reached.
func (p *egressPlan) addresses(ctx context.Context, name string) (good []netip.Addr, err error) {
	var all []netip.Addr
	for try := 1; ; try++ {
		limited, cancel := context.WithTimeout(ctx, lookupPatience)
		all, err = p.lookup(limited, name)
		cancel()
		var dns *net.DNSError
		if err == nil || try == lookupTries || ctx.Err() != nil || errors.As(err, &dns) && dns.IsNotFound {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("has no address here, where it is looked up for the rules: %w", err)
	}
	why := "has no address"
	for _, a := range all {
		a = a.Unmap().WithZone("")
		if fault := addressFault(a); fault != "" && (a.Is6() || !p.in.allowedPrivately(name, a)) {
			why = fmt.Sprintf("is %s, which %s%s", a, fault, privateHint(p.in.selfHosted))
			continue
		}
		good = append(good, a)
	}
	if len(good) == 0 {
		return nil, errors.New(why)
	}
	slices.SortFunc(good, netip.Addr.Compare)
	return slices.Compact(good), nil
}

// rules returns the rules as they are now.
func (p *egressPlan) rules() NetworkRules {
	r := NetworkRules{Policy: p.in.policy, Allow: []NetworkRule{}, Deny: []string{}}
	if p.in.policy == EgressOpen {
		return r
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	r.Deny, r.Warnings = append(r.Deny, e2b.AllTraffic), p.warnings
	reasons := make(map[string][]NetworkReason) // by target
	var networks []netip.Prefix
	add := func(target string, reason NetworkReason) {
		if !slices.Contains(reasons[target], reason) {
			reasons[target] = append(reasons[target], reason)
		}
	}
	resolves, names := false, false
	var single []neededHost
	for _, h := range p.hosts {
		switch {
		case h.pattern != "":
			add(h.pattern, h.reason)
			names = true
		case h.network.IsValid():
			networks = append(networks, h.network)
		default:
			single = append(single, h)
		}
	}
	networks = outermost(networks)
	// E2B mistakes networks within others (infra: firewall.go, "non-merge set").
	within := func(a netip.Prefix, reason NetworkReason) {
		for _, n := range networks {
			if n.Bits() <= a.Bits() && n.Contains(a.Addr()) {
				add(n.String(), reason)
				return
			}
		}
		add(a.Addr().String(), reason)
	}
	for _, h := range p.hosts {
		if h.network.IsValid() {
			within(h.network, h.reason)
		}
	}
	for _, h := range single {
		if addr, err := netip.ParseAddr(h.host); err == nil {
			within(netip.PrefixFrom(addr, addr.BitLen()), h.reason)
			continue
		}
		if h.name {
			add(h.host, h.reason)
			names = true
		}
		if h.address {
			resolves = true
			for _, addr := range p.found[h.host] {
				within(netip.PrefixFrom(addr, addr.BitLen()), h.reason)
			}
		}
	}
	for _, target := range p.kept {
		if _, there := reasons[target]; !there {
			add(target, NetworkReason{Host: target, Field: "allowed by the host before"})
			names = names || !looksNumeric(target)
		}
	}
	if resolves && !names {
		within(netip.MustParsePrefix(nameserver+"/32"), NetworkReason{Host: nameserver, Field: "the sandbox's nameserver"})
	}
	for _, target := range slices.Sorted(maps.Keys(reasons)) {
		r.Allow = append(r.Allow, NetworkRule{target, reasons[target]})
	}
	return r
}

func looksNumeric(target string) bool {
	addr, _, _ := strings.Cut(target, "/")
	return isAddress(addr)
}

// outermost leaves out networks that others contain.
func outermost(list []netip.Prefix) (out []netip.Prefix) {
	slices.SortFunc(list, func(a, b netip.Prefix) int { return cmp.Compare(a.Bits(), b.Bits()) })
	for _, p := range list {
		if !slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Contains(p.Addr()) }) {
			out = append(out, p)
		}
	}
	return out
}

// names returns those that are to be looked up again.
func (p *egressPlan) names() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.found))
}

// relearn adds the hosts of connections that have others now.
func (p *egressPlan) relearn(ctx context.Context) (added int, err error) {
	if p.again == nil {
		return 0, nil
	}
	in := p.again()
	hosts, _, err := in.needed()
	if err != nil {
		return 0, err
	}
	for _, h := range hosts {
		p.mu.Lock()
		known := slices.Contains(p.hosts, h)
		p.mu.Unlock()
		if known {
			continue
		}
		one := &egressPlan{in: in, lookup: p.lookup, found: make(map[string][]netip.Addr)}
		if settleErr := one.settle(ctx, &h); settleErr != nil {
			err = errors.Join(err, settleErr)
			continue
		}
		p.mu.Lock()
		p.hosts = append(p.hosts, h)
		for name, addrs := range one.found {
			if _, known := p.found[name]; !known {
				p.found[name] = addrs
			}
		}
		p.mu.Unlock()
		added++
	}
	return added, err
}

// refresh looks the names up again and returns how many addresses are new. What
// was found before stays: connections to it may be open, and in a pool.
func (p *egressPlan) refresh(ctx context.Context) (added int, err error) {
	for _, name := range p.names() {
		addrs, lookErr := p.addresses(ctx, name)
		if lookErr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", name, lookErr))
			continue
		}
		p.mu.Lock()
		total := 0
		for _, known := range p.found {
			total += len(known)
		}
		for _, a := range addrs {
			if slices.Contains(p.found[name], a) {
				continue
			}
			if total++; total > maxAddresses {
				err = errors.Join(err, fmt.Errorf("%s: the rules have %d addresses already", name, maxAddresses))
				break
			}
			p.found[name] = append(p.found[name], a)
			added++
		}
		p.mu.Unlock()
	}
	return added, err
}

// egress makes the plan of a run's network, before there is a sandbox, from
// what is known of its connections and variables. Nil where nothing is limited
// here, as the sandboxes are not E2B's.
func (e *engine) egress(ctx context.Context, p *PreparedRun, known *runSecrets) (*egressPlan, error) {
	if !e.attachable {
		return nil, nil
	}
	return e.planEgress(ctx, p, known)
}

func (e *engine) planEgress(ctx context.Context, p *PreparedRun, known *runSecrets) (*egressPlan, error) {
	look := e.lookup
	if look == nil {
		look = systemLookup
	}
	plan, err := planEgress(ctx, e.egressInput(p, known), look)
	for _, c := range known.all() {
		if err == nil && plan.in.policy != EgressOpen && !c.RefreshAt.IsZero() {
			plan.again = func() egressInput { return e.egressInput(p, known) }
		}
	}
	return plan, err
}

func (e *engine) egressInput(p *PreparedRun, known *runSecrets) egressInput {
	in := egressInput{policy: cmp.Or(e.cfg.Egress, EgressLimited), allow: e.cfg.AllowHosts, selfHosted: e.cfg.selfHosted()}
	if in.policy == EgressOpen {
		return in
	}
	if e.cfg.installDeps() && len(p.PythonDrivers) > 0 {
		in.indexes = packageIndexes(known.env)
	}
	for _, s := range p.Plan.Steps {
		in.steps = append(in.steps, e.egressStep(p, s, p.CfgIndex[s.cfgPath()], known))
	}
	return in
}

func (e *engine) egressStep(p *PreparedRun, s Step, config map[string]any, known *runSecrets) egressStep {
	out := egressStep{id: s.ID, redact: known.redact}
	out.family, _, _ = strings.Cut(cmp.Or(s.Component, s.DriverName()), ".")
	out.config, _ = fillPlaceholders(config, known.env).(map[string]any)
	if ref, ok, err := connectionRef(s, config); err == nil && ok {
		if c := known.connection(ref.String()); c != nil {
			out.connection = connections.Reference{Family: c.Family, Alias: c.Alias}.String()
			out.family, out.fields = c.Family, c.Plain()
		}
	}
	if _, declared := p.pythonDriver(s.DriverName()); declared || e.cfg.Drivers == nil {
		return out
	}
	entry, err := e.cfg.Drivers.Lookup(s.DriverName())
	if err != nil {
		return out // Prepare has refused it
	}
	if namer, ok := entry.New().(worker.HostNamer); ok {
		out.declare = namer.Hosts
	}
	return out
}

// fillPlaceholders fills ${NAME} as drivers do, from what the run passes.
func fillPlaceholders(v any, env map[string]string) any {
	switch v := v.(type) {
	case string:
		for from := 0; ; {
			i := strings.Index(v[from:], "${")
			if i < 0 {
				return v
			}
			i += from
			j := strings.Index(v[i:], "}")
			if j < 0 {
				return v
			}
			value, ok := env[v[i+2:i+j]]
			if !ok || value == "" {
				from = i + j
				continue
			}
			v = v[:i] + value + v[i+j+1:]
			from = i + len(value)
		}
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, item := range v {
			out[key] = fillPlaceholders(item, env)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = fillPlaceholders(v[i], env)
		}
		return out
	}
	return v
}

// packageIndexes returns the URLs from which pip and uv install, by the
// variables that a run passes them.
func packageIndexes(env map[string]string) []string {
	urls := []string{"https://pypi.org/simple", "https://files.pythonhosted.org"}
	for _, name := range []string{"PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX"} {
		if env[name] != "" {
			urls = nil
		}
	}
	for _, name := range []string{"PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_INDEX"} {
		for _, u := range strings.Fields(env[name]) {
			if name, rest, ok := strings.Cut(u, "="); ok && strings.Contains(rest, "://") && !strings.ContainsAny(name, ":/") {
				u = rest // UV_INDEX="name=https://..."
			}
			if !slices.Contains(urls, u) {
				urls = append(urls, u)
			}
		}
	}
	return urls
}

// selfHosted reports whether sandboxes are not those of E2B's cloud, so that
// what they can reach is for its owner to say.
func (c Config) selfHosted() bool {
	if c.sandboxURL() != "" {
		return true
	}
	domain := cmp.Or(c.Domain, strings.TrimSpace(os.Getenv("E2B_DOMAIN")), "e2b.app")
	return !slices.Contains([]string{"e2b.app", "e2b.dev", "e2b.pro", "e2b-staging.dev"}, domain)
}

// Network shows what the sandbox of a run may reach, and why, without making
// one. It asks Config.Connections for the values, as Execute does, and looks up
// the names of hosts that E2B tells apart by address only. It shows no secret.
// The error matches [ErrUnreachable] where Execute's would. With
// Config.OpenSandbox it shows what would hold in E2B.
func (a *E2BTransparentProxy) Network(ctx context.Context, p *PreparedRun) (NetworkRules, error) {
	if p == nil || p.Plan == nil {
		return NetworkRules{}, fmt.Errorf("remote: network: %w: there is no prepared run", ErrInvalid)
	}
	known := a.newSecrets()
	if err := known.complete(ctx, a.cfg, p); err != nil {
		return NetworkRules{}, redactedBy(known.redact, err)
	}
	plan, err := a.planEgress(ctx, p, known)
	if err != nil {
		return NetworkRules{}, redactedBy(known.redact, err)
	}
	return plan.rules(), nil
}

// limiter is a sandbox whose network can be limited.
type limiter interface {
	setNetwork(ctx context.Context, n e2b.Network) error
	// unlimited says why the rules that it was made with are not in force; nil
	// where they are.
	unlimited() error
	// openPorts reports whether who knows the sandbox's ID reaches its ports.
	openPorts() bool
}

// tellNetwork tells what the sandbox may reach.
func (p *egressPlan) tellNetwork(s teller, sb Sandbox) {
	box, ok := sb.(limiter)
	if p == nil || !ok {
		return
	}
	id := sb.Info().ID
	if box.openPorts() {
		s.logf(slog.LevelWarn, "the server does not keep the ports of the sandbox private: who knows its id reaches what listens in it")
	}
	rules := p.rules()
	for _, w := range rules.Warnings {
		s.logf(slog.LevelWarn, "network: %s", w)
	}
	if len(rules.Deny) == 0 {
		return
	}
	if why := box.unlimited(); why != nil {
		s.logf(slog.LevelWarn, "THE NETWORK OF THE SANDBOX IS NOT LIMITED: %v; to fail instead, set Config.Egress to %q; to have it so, to %q", why, EgressRequired, EgressOpen)
		s.event("network_not_limited", map[string]any{"sandbox_id": id, "reason": why.Error()})
		return
	}
	allowed := make([]map[string]any, 0, len(rules.Allow))
	for _, rule := range rules.Allow {
		because := make([]string, 0, len(rule.Reasons))
		for _, reason := range rule.Reasons {
			because = append(because, reason.String())
		}
		allowed = append(allowed, map[string]any{"target": rule.Target, "reasons": because})
	}
	s.event("network_limited", map[string]any{
		"sandbox_id": id, "policy": string(rules.Policy), "allowed_count": len(allowed), "allowed": allowed, "denied": rules.Deny,
	})
}

// keepNetwork looks after the rules of a sandbox that a dead host has made.
// What they allow stays allowed.
func (a *E2BTransparentProxy) keepNetwork(ctx context.Context, r *run, s teller, sb Sandbox) *networkWatch {
	box, ok := sb.(*e2bSandbox)
	if !ok || a.cfg.Egress == EgressOpen {
		return nil
	}
	info, err := box.sb.Info(ctx)
	if err == nil && !slices.Contains(info.Network.DenyOut, e2b.AllTraffic) {
		return nil // it was made so, and that was told
	}
	var plan *egressPlan
	if err == nil {
		plan, err = a.egress(ctx, r.prepared, r.secrets)
	}
	if err != nil {
		s.logf(slog.LevelWarn, "network: the sandbox's rules stay as they are: %v", err)
		return nil
	}
	plan.kept = info.Network.AllowOut
	return plan.watch(ctx, s, sb)
}

// checkRequired refuses the sandbox of a dead host that has no rules, where this
// host wants some.
func (a *E2BTransparentProxy) checkRequired(ctx context.Context, pl *place) error {
	box, ok := pl.sandbox.(*e2bSandbox)
	if !ok || a.cfg.Egress != EgressRequired {
		return nil
	}
	info, err := box.sb.Info(ctx)
	if err == nil && !slices.Contains(info.Network.DenyOut, e2b.AllTraffic) {
		err = fmt.Errorf("%w: the network of the sandbox is not limited; Config.Egress is %q", ErrUnsupported, EgressRequired)
	}
	if err != nil {
		return fmt.Errorf("remote: attach: %w", err)
	}
	return nil
}

// widened reports whether there are rules that a sandbox has not got which a dead
// host has made.
func (p *egressPlan) widened() bool {
	return p.kept != nil && slices.ContainsFunc(p.rules().targets(), func(target string) bool { return !slices.Contains(p.kept, target) })
}

// networkWatch keeps the rules of a sandbox right while its run lives. Nil is
// that of one that needs none.
type networkWatch struct {
	plan *egressPlan
	box  limiter
	stop context.CancelFunc
	done sync.WaitGroup

	looking sync.Mutex // held by look, and guards the two below
	unsent  bool       // there are rules that the sandbox has not got
	failing bool       // and that was told
}

// watch looks the names of the plan up again, until release. What goes wrong is
// told to s, once while it lasts.
func (p *egressPlan) watch(ctx context.Context, s teller, sb Sandbox) *networkWatch {
	box, ok := sb.(limiter)
	if p == nil || !ok || box.unlimited() != nil {
		return nil
	}
	widened := p.widened()
	if len(p.names()) == 0 && p.again == nil && !widened {
		return nil
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	w := &networkWatch{plan: p, box: box, stop: stop, unsent: widened}
	w.done.Go(func() { w.run(ctx, s, widened) })
	return w
}

// release ends the watch, and waits for it. It may be called again.
func (w *networkWatch) release() {
	if w != nil {
		w.stop()
		w.done.Wait()
	}
}

// run looks now and then; at once where the sandbox lacks rules already.
func (w *networkWatch) run(ctx context.Context, s teller, atOnce bool) {
	const spread = refreshEvery / refreshJitter
	if atOnce {
		w.look(ctx, s, true)
	}
	for {
		select {
		case <-time.After(refreshEvery - spread + rand.N(2*spread)):
		case <-ctx.Done():
			return
		}
		w.look(ctx, s, true)
	}
}

// look makes the rules those of the run's connections as they are now, and with
// names looks all names up again.
func (w *networkWatch) look(ctx context.Context, s teller, names bool) {
	if w == nil {
		return
	}
	w.looking.Lock()
	defer w.looking.Unlock()
	added, err := w.plan.relearn(ctx)
	if names {
		more, lookErr := w.plan.refresh(ctx)
		added, err = added+more, errors.Join(err, lookErr)
	}
	w.unsent = w.unsent || added > 0
	if w.unsent && ctx.Err() == nil {
		setErr := w.box.setNetwork(ctx, w.plan.rules().network())
		if err = errors.Join(err, setErr); setErr == nil {
			w.unsent = false
			s.logf(slog.LevelInfo, "network: hosts of the run have new addresses, which the sandbox may reach now")
		}
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil && !w.failing {
		s.logf(slog.LevelWarn, "network: the sandbox's rules stay as they are: %v", err)
	}
	w.failing = err != nil
}
