package manual_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"purchase-relay/internal/testkit/manual"
)

// object is a Kubernetes manifest, as far as the test looks.
type object struct {
	Kind     string `yaml:"kind"`
	Metadata struct {
		Name   string            `yaml:"name"`
		Labels map[string]string `yaml:"labels"`
	} `yaml:"metadata"`
	Spec struct {
		Selector    yaml.Node `yaml:"selector"` // a service's is a plain map
		PodSelector selector  `yaml:"podSelector"`
		PolicyTypes []string  `yaml:"policyTypes"`
		Egress      []struct {
			To    []peer `yaml:"to"`
			Ports []struct {
				Port int `yaml:"port"`
			} `yaml:"ports"`
		} `yaml:"egress"`
		Schedule          string `yaml:"schedule"`
		ConcurrencyPolicy string `yaml:"concurrencyPolicy"`
		JobTemplate       struct {
			Spec struct {
				Template template `yaml:"template"`
			} `yaml:"spec"`
		} `yaml:"jobTemplate"`
		Ports []struct {
			Port       int    `yaml:"port"`
			TargetPort string `yaml:"targetPort"`
		} `yaml:"ports"`
		Template       template `yaml:"template"`
		ScaleTargetRef struct {
			Name string `yaml:"name"`
		} `yaml:"scaleTargetRef"`
		Triggers []struct {
			Metadata map[string]string `yaml:"metadata"`
		} `yaml:"triggers"`
	} `yaml:"spec"`
}

type template struct {
	Metadata struct {
		Labels      map[string]string `yaml:"labels"`
		Annotations map[string]string `yaml:"annotations"`
	} `yaml:"metadata"`
	Spec pod `yaml:"spec"`
}

type selector struct {
	MatchLabels      map[string]string `yaml:"matchLabels"`
	MatchExpressions []struct {
		Key      string   `yaml:"key"`
		Operator string   `yaml:"operator"`
		Values   []string `yaml:"values"`
	} `yaml:"matchExpressions"`
}

// names are the pods that a selector chooses; none: all.
func (s selector) names() (list []string) {
	if name, ok := s.MatchLabels["app.kubernetes.io/name"]; ok {
		list = append(list, name)
	}
	for _, e := range s.MatchExpressions {
		if e.Key == "app.kubernetes.io/name" && e.Operator == "In" {
			list = append(list, e.Values...)
		}
	}
	return list
}

// peer is whom a policy lets a pod talk to.
type peer struct {
	NamespaceSelector *selector `yaml:"namespaceSelector"`
	PodSelector       *selector `yaml:"podSelector"`
	IPBlock           *struct {
		CIDR   string   `yaml:"cidr"`
		Except []string `yaml:"except"`
	} `yaml:"ipBlock"`
}

type pod struct {
	AutomountServiceAccountToken *bool `yaml:"automountServiceAccountToken"`
	SecurityContext              struct {
		RunAsNonRoot bool `yaml:"runAsNonRoot"`
		RunAsUser    int  `yaml:"runAsUser"`
		Seccomp      struct {
			Type string `yaml:"type"`
		} `yaml:"seccompProfile"`
	} `yaml:"securityContext"`
	Grace      int         `yaml:"terminationGracePeriodSeconds"`
	Containers []container `yaml:"containers"`
	Volumes    []struct {
		Secret struct {
			SecretName string `yaml:"secretName"`
		} `yaml:"secret"`
	} `yaml:"volumes"`
}

type probe struct {
	HTTPGet struct {
		Path string `yaml:"path"`
		Port string `yaml:"port"`
	} `yaml:"httpGet"`
}

type container struct {
	Name  string   `yaml:"name"`
	Image string   `yaml:"image"`
	Args  []string `yaml:"args"`
	Ports []struct {
		Name          string `yaml:"name"`
		ContainerPort int    `yaml:"containerPort"`
	} `yaml:"ports"`
	Env []struct {
		Name      string `yaml:"name"`
		Value     string `yaml:"value"`
		ValueFrom struct {
			SecretKeyRef struct {
				Key string `yaml:"key"`
			} `yaml:"secretKeyRef"`
		} `yaml:"valueFrom"`
	} `yaml:"env"`
	LivenessProbe   probe `yaml:"livenessProbe"`
	ReadinessProbe  probe `yaml:"readinessProbe"`
	StartupProbe    probe `yaml:"startupProbe"`
	SecurityContext struct {
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct {
			Drop []string `yaml:"drop"`
		} `yaml:"capabilities"`
	} `yaml:"securityContext"`
	Lifecycle struct {
		PreStop struct {
			Sleep struct {
				Seconds int `yaml:"seconds"`
			} `yaml:"sleep"`
		} `yaml:"preStop"`
	} `yaml:"lifecycle"`
	Resources struct {
		Limits map[string]string `yaml:"limits"`
	} `yaml:"resources"`
}

// objects reads every manifest of deploy/kubernetes.
func objects(t *testing.T) (list []object) {
	t.Helper()
	files := os.DirFS(root + "/deploy/kubernetes")
	names, err := fs.Glob(files, "*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if path.Base(name) == "kustomization.yaml" {
			continue
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			t.Fatal(err)
		}
		for decoder := yaml.NewDecoder(bytes.NewReader(text)); ; {
			var o object
			if err := decoder.Decode(&o); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			list = append(list, o)
		}
	}
	return list
}

// The manifests speak of variables that exist, of ports, labels and services that are there, and of secrets that the README makes.
// Whether they are Kubernetes at all, `make manifests` says.
func TestKubernetes(t *testing.T) {
	all := objects(t)
	known, err := manual.Documented(root)
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(root + "/deploy/kubernetes/README.md")
	if err != nil {
		t.Fatal(err)
	}
	pods, ports := map[string]container{}, map[string]bool{}
	for _, o := range all {
		made := o.Spec.Template
		if o.Kind == "CronJob" {
			made = o.Spec.JobTemplate.Spec.Template
		}
		for _, c := range made.Spec.Containers {
			name := made.Metadata.Labels["app.kubernetes.io/name"]
			pods[name] = c
			checkPod(t, name, made.Spec, c, known, string(readme))
			for _, p := range c.Ports {
				ports[name+":"+p.Name] = true
			}
			if scraped := made.Metadata.Annotations["prometheus.io/port"]; len(c.Ports) > 0 && scraped != strings.TrimPrefix(value(c, "ADMIN_ADDR"), ":") {
				t.Errorf("%s: Prometheus asks at port %s", name, scraped)
			}
		}
	}
	if got := slices.Sorted(maps.Keys(pods)); !slices.Equal(got, []string{"ingest", "migrate", "provision", "prune", "tiktok-worker"}) {
		t.Errorf("pods: %v", got)
	}
	services := map[string]int{}
	for _, o := range all {
		chosen := o.Spec.PodSelector.names()
		want := map[string]string{}
		if o.Kind == "Service" {
			if err := o.Spec.Selector.Decode(&want); err != nil {
				t.Fatal(err)
			}
			for _, p := range o.Spec.Ports {
				services[o.Metadata.Name] = p.Port
				if !ports[want["app.kubernetes.io/name"]+":"+p.TargetPort] {
					t.Errorf("service %s leads to no port: %s", o.Metadata.Name, p.TargetPort)
				}
			}
		} else if !o.Spec.Selector.IsZero() {
			var s selector
			if err := o.Spec.Selector.Decode(&s); err != nil {
				t.Fatal(err)
			}
			want = s.MatchLabels
		}
		if name, ok := want["app.kubernetes.io/name"]; ok {
			chosen = append(chosen, name)
		}
		for _, name := range chosen {
			if pods[name].Name == "" {
				t.Errorf("%s %s selects %s, which is nowhere", o.Kind, o.Metadata.Name, name)
			}
		}
	}
	checkScaler(t, all, services)
	if hosts := strings.Split(value(pods["ingest"], "ADMIN_HOSTS"), ","); !slices.Contains(hosts, "ingest-admin.purchase-relay.svc") || !slices.Contains(hosts, "ingest-admin") {
		t.Errorf("ingest's admin listener answers under %v, and not as the autoscaler asks", hosts)
	}
	checkEgress(t, all, slices.Collect(maps.Keys(pods)))
}

// Everything is closed to begin with. Each pod reaches what it needs, by that port alone, and no rule is open
// to every address.
func checkEgress(t *testing.T, all []object, pods []string) {
	t.Helper()
	want := map[string][]int{
		"ingest": {53, 443, 4222, 5432}, "tiktok-worker": {53, 443, 4222}, "provision": {53, 4222}, "migrate": {53, 5432}, "prune": {53, 5432},
	}
	closed, reach := false, map[string][]int{}
	for _, o := range all {
		if o.Kind != "NetworkPolicy" {
			continue
		}
		chosen := o.Spec.PodSelector.names()
		closed = closed || len(chosen) == 0 && slices.Equal(o.Spec.PolicyTypes, []string{"Ingress", "Egress"}) && len(o.Spec.Egress) == 0
		if len(chosen) == 0 {
			chosen = pods
		}
		for _, way := range o.Spec.Egress {
			if len(way.Ports) == 0 || len(way.To) == 0 {
				t.Errorf("policy %s: %d ports to %d peers, want both limited", o.Metadata.Name, len(way.Ports), len(way.To))
			}
			for _, p := range way.Ports {
				for _, to := range way.To {
					checkPeer(t, o.Metadata.Name, p.Port, to)
				}
				for _, name := range chosen {
					if !slices.Contains(reach[name], p.Port) {
						reach[name] = append(reach[name], p.Port)
					}
				}
			}
		}
	}
	for name, ports := range want {
		if slices.Sort(reach[name]); !slices.Equal(reach[name], ports) {
			t.Errorf("%s reaches ports %v, want %v", name, reach[name], ports)
		}
	}
	if !closed {
		t.Error("no policy closes everything to begin with")
	}
}

// checkPeer checks whom a port leads to.
func checkPeer(t *testing.T, policy string, port int, to peer) {
	t.Helper()
	labelled := func(label string) bool {
		return to.IPBlock == nil && to.NamespaceSelector != nil && to.NamespaceSelector.MatchLabels[label] != ""
	}
	private := []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"}
	narrow := false
	switch port {
	case 53:
		narrow = labelled("kubernetes.io/metadata.name") && to.PodSelector != nil && to.PodSelector.MatchLabels["k8s-app"] == "kube-dns"
	case 4222:
		narrow = labelled("purchase-relay/nats")
	case 5432:
		narrow = labelled("purchase-relay/postgres") || to.IPBlock != nil && slices.Contains(private, to.IPBlock.CIDR)
	case 443: // the internet alone: neither the cluster nor the provider's metadata service
		if to.IPBlock != nil {
			open := slices.Concat(private[:3], []string{"169.254.0.0/16", "100.64.0.0/10"})
			narrow = to.IPBlock.CIDR == "2000::/3" || to.IPBlock.CIDR == "0.0.0.0/0" && !slices.ContainsFunc(open, func(block string) bool { return !slices.Contains(to.IPBlock.Except, block) })
		}
	}
	if !narrow {
		t.Errorf("policy %s: port %d leads to %+v, want a narrower peer", policy, port, to)
	}
}

// The namespace refuses, reports and warns of pods that are not restricted, by the rules of a fixed version.
func TestKubernetes_PodSecurity(t *testing.T) {
	t.Parallel()
	for _, o := range objects(t) {
		if o.Kind != "Namespace" {
			continue
		}
		for _, mode := range []string{"enforce", "audit", "warn"} {
			label := "pod-security.kubernetes.io/" + mode
			if level, version := o.Metadata.Labels[label], o.Metadata.Labels[label+"-version"]; level != "restricted" || !strings.HasPrefix(version, "v1.") {
				t.Errorf("%s = %q, version %q, want restricted of a fixed version", mode, level, version)
			}
		}
		return
	}
	t.Error("no namespace")
}

// Old rows leave by a schedule, with an age that `ingest prune` takes.
func TestKubernetes_Prunes(t *testing.T) {
	t.Parallel()
	all := objects(t)
	i := slices.IndexFunc(all, func(o object) bool { return o.Kind == "CronJob" })
	if i < 0 {
		t.Fatal("no schedule")
	}
	spec := all[i].Spec
	args := strings.Join(spec.JobTemplate.Spec.Template.Spec.Containers[0].Args, " ")
	if len(strings.Fields(spec.Schedule)) != 5 || spec.ConcurrencyPolicy != "Forbid" || args != "prune --yes --older-than 90d --also dead,rejected,awaiting_payment" {
		t.Errorf("schedule = %q, %q, args %q", spec.Schedule, spec.ConcurrencyPolicy, args)
	}
}

func value(c container, name string) string {
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

// secretCommand is the README's command that makes a secret, up to the next one.
func secretCommand(readme, name string) string {
	_, rest, _ := strings.Cut(readme, "create secret generic "+name+" ")
	made, _, _ := strings.Cut(rest, "kubectl")
	return made
}

func checkPod(t *testing.T, name string, p pod, c container, known map[string]bool, readme string) {
	t.Helper()
	box := c.SecurityContext
	if p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken || !p.SecurityContext.RunAsNonRoot || p.SecurityContext.RunAsUser != 65532 || p.SecurityContext.Seccomp.Type != "RuntimeDefault" ||
		box.AllowPrivilegeEscalation == nil || *box.AllowPrivilegeEscalation || !box.ReadOnlyRootFilesystem || !slices.Equal(box.Capabilities.Drop, []string{"ALL"}) || c.Resources.Limits["memory"] == "" {
		t.Errorf("%s may do more than it has to: %+v %+v", name, p, box)
	}
	for _, e := range c.Env {
		if !known[e.Name] && e.Name != "GOMEMLIMIT" {
			t.Errorf("%s is told %s, which no binary takes", name, e.Name)
		}
		key := e.ValueFrom.SecretKeyRef.Key
		if rest, ok := strings.CutPrefix(e.Value, "/secrets/"); ok {
			key = rest
		} else if strings.HasSuffix(e.Name, "_FILE") {
			t.Errorf("%s: %s is no mounted secret", name, e.Name)
		}
		if key != "" && !strings.Contains(secretCommand(readme, p.Volumes[0].Secret.SecretName), "--from-file="+key+"=") {
			t.Errorf("the README makes no %s in the secret %s", key, p.Volumes[0].Secret.SecretName)
		}
	}
	for _, e := range c.Env { // the owner's password, Stripe's secret and TikTok's token: each in one place
		if only := map[string]string{"MIGRATE_DATABASE_URL_FILE": "migrate", "STRIPE_WEBHOOK_SECRET_FILE": "ingest", "TIKTOK_ACCESS_TOKEN_FILE": "tiktok-worker"}[e.Name]; only != "" && only != name {
			t.Errorf("%s has %s, which is %s's alone", name, e.Name, only)
		}
	}
	if command, ok := map[string]string{"migrate": "migrate", "provision": "provision --every 15s", "prune": "prune"}[name]; ok {
		if args := strings.Join(c.Args, " "); !strings.HasPrefix(args, command) {
			t.Errorf("%s runs %q, want %q", name, args, command)
		}
		return
	}
	// What is in flight is finished before Kubernetes kills: preStop, then SHUTDOWN_GRACE (8 s unless told), count from the same start.
	grace := 8 * time.Second
	if told := value(c, "SHUTDOWN_GRACE"); told != "" {
		var err error
		if grace, err = time.ParseDuration(told); err != nil {
			t.Error(err)
		}
	}
	if needed := time.Duration(c.Lifecycle.PreStop.Sleep.Seconds)*time.Second + grace; time.Duration(p.Grace)*time.Second <= needed {
		t.Errorf("%s is killed after %d s, and needs %s", name, p.Grace, needed)
	}
	named := map[string]int{}
	for _, p := range c.Ports {
		named[p.Name] = p.ContainerPort
	}
	if admin := strings.TrimPrefix(value(c, "ADMIN_ADDR"), ":"); admin == "" || strconv.Itoa(named["admin"]) != admin || !strings.Contains(readme, "ingest-admin") {
		t.Errorf("%s: the admin listener is at %q, the port %d", name, admin, named["admin"])
	}
	for probe, at := range map[string]string{
		"liveness": c.LivenessProbe.HTTPGet.Path, "readiness": c.ReadinessProbe.HTTPGet.Path, "startup": c.StartupProbe.HTTPGet.Path,
	} {
		if want := map[string]string{"liveness": "/healthz", "readiness": "/readyz", "startup": "/healthz"}[probe]; at != want {
			t.Errorf("%s: the %s probe asks %s", name, probe, at)
		}
	}
	for _, port := range []string{c.LivenessProbe.HTTPGet.Port, c.ReadinessProbe.HTTPGet.Port, c.StartupProbe.HTTPGet.Port} {
		if port != "admin" {
			t.Errorf("%s: a probe goes to the port %q", name, port)
		}
	}
}

// The autoscaler asks a service that there is for a metric that there is.
func checkScaler(t *testing.T, all []object, services map[string]int) {
	t.Helper()
	metrics, err := os.ReadFile(root + "/docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(o object) bool { return o.Kind == "ScaledObject" })
	if i < 0 || len(all[i].Spec.Triggers) != 1 || all[i].Spec.ScaleTargetRef.Name != "tiktok-worker" {
		t.Fatal("nothing scales the workers")
	}
	asked := all[i].Spec.Triggers[0].Metadata
	metric, ours := strings.CutPrefix(asked["valueLocation"], "purchase_relay_")
	if asked["url"] != "http://ingest-admin.purchase-relay.svc:8081/metrics" || services["ingest-admin"] != 8081 || !ours || !strings.Contains(string(metrics), "| `"+metric+"` | gauge |") {
		t.Errorf("the autoscaler asks %v", asked)
	}
}
