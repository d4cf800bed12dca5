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

	"purchase-relay/internal/dev/manual"
)

// object is a Kubernetes manifest, as far as the test looks.
type object struct {
	Kind     string `yaml:"kind"`
	Metadata struct {
		Name string `yaml:"name"`
	} `yaml:"metadata"`
	Spec struct {
		Selector    yaml.Node `yaml:"selector"` // a service's is a plain map
		PodSelector selector  `yaml:"podSelector"`
		PolicyTypes []string  `yaml:"policyTypes"`
		Egress      []struct {
			Ports []struct {
				Port int `yaml:"port"`
			} `yaml:"ports"`
		} `yaml:"egress"`
		Ports []struct {
			Port       int    `yaml:"port"`
			TargetPort string `yaml:"targetPort"`
		} `yaml:"ports"`
		Template struct {
			Metadata struct {
				Labels      map[string]string `yaml:"labels"`
				Annotations map[string]string `yaml:"annotations"`
			} `yaml:"metadata"`
			Spec pod `yaml:"spec"`
		} `yaml:"template"`
		ScaleTargetRef struct {
			Name string `yaml:"name"`
		} `yaml:"scaleTargetRef"`
		Triggers []struct {
			Metadata map[string]string `yaml:"metadata"`
		} `yaml:"triggers"`
	} `yaml:"spec"`
}

type selector struct {
	MatchLabels map[string]string `yaml:"matchLabels"`
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
		for _, c := range o.Spec.Template.Spec.Containers {
			name := o.Spec.Template.Metadata.Labels["app.kubernetes.io/name"]
			pods[name] = c
			checkPod(t, name, o.Spec.Template.Spec, c, known, string(readme))
			for _, p := range c.Ports {
				ports[name+":"+p.Name] = true
			}
			if scraped := o.Spec.Template.Metadata.Annotations["prometheus.io/port"]; o.Kind == "Deployment" && scraped != strings.TrimPrefix(value(c, "ADMIN_ADDR"), ":") {
				t.Errorf("%s: Prometheus asks at port %s", name, scraped)
			}
		}
	}
	if got := slices.Sorted(maps.Keys(pods)); !slices.Equal(got, []string{"ingest", "migrate", "tiktok-worker"}) {
		t.Errorf("pods: %v", got)
	}
	services := map[string]int{}
	for _, o := range all {
		want := o.Spec.PodSelector.MatchLabels
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
		if name, ok := want["app.kubernetes.io/name"]; ok && pods[name].Name == "" {
			t.Errorf("%s %s selects %s, which is nowhere", o.Kind, o.Metadata.Name, name)
		}
	}
	checkScaler(t, all, services)
	checkEgress(t, all)
}

// Everything is closed to begin with, and what is opened for everybody or for the worker is not Postgres.
func checkEgress(t *testing.T, all []object) {
	t.Helper()
	closed, worker := false, false
	for _, o := range all {
		if o.Kind != "NetworkPolicy" {
			continue
		}
		chosen := o.Spec.PodSelector.MatchLabels
		opens := slices.Contains(o.Spec.PolicyTypes, "Egress") && len(o.Spec.Egress) > 0
		closed = closed || len(chosen) == 0 && slices.Contains(o.Spec.PolicyTypes, "Egress") && !opens
		if name := chosen["app.kubernetes.io/name"]; len(chosen) > 0 && name != "tiktok-worker" {
			continue
		}
		worker = worker || len(chosen) > 0
		for _, way := range o.Spec.Egress {
			if len(way.Ports) == 0 {
				t.Errorf("the policy %s lets the worker out by every port", o.Metadata.Name)
			}
			for _, p := range way.Ports {
				if !slices.Contains([]int{53, 443, 4222}, p.Port) {
					t.Errorf("the policy %s lets the worker out by port %d", o.Metadata.Name, p.Port)
				}
			}
		}
	}
	if !closed || !worker {
		t.Errorf("closed to begin with: %v; a policy for the worker: %v", closed, worker)
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
	if name == "migrate" {
		if !slices.Equal(c.Args, []string{"migrate"}) {
			t.Errorf("the job runs %v", c.Args)
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
