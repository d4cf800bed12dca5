package deploytest

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// Each pod runs one container, which may do no more than it has to. `make manifests` checks the manifests
// against the schemas of Kubernetes.
func TestPods_LeastPrivilege(t *testing.T) {
	t.Parallel()
	pods := podTemplates(t)
	all := []string{"ingest", "migrate", "provision", "prune", "tiktok-worker"}
	if got := slices.Sorted(maps.Keys(pods)); !slices.Equal(got, all) {
		t.Errorf("pods = %v, want %v", got, all)
	}
	for name, template := range pods {
		for path, want := range map[string]any{
			"automountServiceAccountToken":                          false,
			"containers 0 securityContext allowPrivilegeEscalation": false,
			"containers 0 securityContext capabilities drop":        []any{"ALL"},
			"containers 0 securityContext readOnlyRootFilesystem":   true,
			"containers 1":                        nil,
			"hostNetwork":                         nil,
			"initContainers":                      nil,
			"securityContext runAsNonRoot":        true,
			"securityContext runAsUser":           65532,
			"securityContext seccompProfile type": "RuntimeDefault",
		} {
			if got := at(template, "spec "+path); !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %s = %v, want %v", name, path, got, want)
			}
		}
		if text(template, "spec containers 0 resources limits memory") == "" {
			t.Errorf("%s has no memory limit", name)
		}
	}
}

func TestPods_RunTheirCommand(t *testing.T) {
	t.Parallel()
	pods := podTemplates(t)
	for name, want := range map[string]string{
		"ingest":        "[]",
		"migrate":       "[migrate]",
		"provision":     "[provision --every 15s]",
		"prune":         "[prune --yes --older-than 90d --also dead,rejected,awaiting_payment]",
		"tiktok-worker": "[]",
	} {
		if got := fmt.Sprint(list(pods[name], "spec containers 0 args")); got != want {
			t.Errorf("%s: args = %s, want %s", name, got, want)
		}
	}
	prune := manifests(t)["CronJob prune"]
	if schedule := strings.Fields(text(prune, "spec schedule")); len(schedule) != 5 {
		t.Errorf("prune: schedule = %v, want five fields", schedule)
	}
	if got := text(prune, "spec concurrencyPolicy"); got != "Forbid" {
		t.Errorf("prune: concurrencyPolicy = %s, want Forbid", got)
	}
}

// Pods get variables that their binary takes. Secrets come from files or keys that the README's commands
// create, and each of the three strongest is in one pod.
func TestPods_GetVariablesAndSecrets(t *testing.T) {
	t.Parallel()
	holders := map[string]string{
		"MIGRATE_DATABASE_URL_FILE":  "migrate",
		"STRIPE_WEBHOOK_SECRET_FILE": "ingest",
		"TIKTOK_ACCESS_TOKEN_FILE":   "tiktok-worker",
	}
	readme := read(t, "deploy/kubernetes/README.md")
	for pod, template := range podTemplates(t) {
		binary := "ingest"
		if pod == "tiktok-worker" {
			binary = pod
		}
		known := variables(t, binary)
		secret := text(template, "spec volumes 0 secret secretName")
		_, created, _ := strings.Cut(readme, "create secret generic "+secret+" ")
		created, _, _ = strings.Cut(created, "kubectl")
		for _, e := range list(template, "spec containers 0 env") {
			name, key := text(e, "name"), text(e, "valueFrom secretKeyRef key")
			_, taken := known[name]
			if !taken && !known[strings.TrimSuffix(name, "_FILE")].File && name != "GOMEMLIMIT" {
				t.Errorf("%s gets %s, which %s does not take", pod, name, binary)
			}
			if holder := holders[name]; holder != "" && holder != pod {
				t.Errorf("%s gets %s, which is %s's alone", pod, name, holder)
			}
			if mounted, ok := strings.CutPrefix(text(e, "value"), "/secrets/"); ok {
				key = mounted
			} else if strings.HasSuffix(name, "_FILE") {
				t.Errorf("%s: %s = %s, want a mounted secret", pod, name, text(e, "value"))
			}
			if key != "" && !strings.Contains(created, "--from-file="+key+"=") {
				t.Errorf("README.md creates no %s in the secret %s", key, secret)
			}
		}
	}
}

func TestPods_ServeProbesAndMetrics(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"ingest", "tiktok-worker"} {
		template := podTemplates(t)[name]
		admin := strings.TrimPrefix(environment(template)["ADMIN_ADDR"], ":")
		for path, want := range map[string]string{
			"metadata annotations prometheus.io/port":       admin,
			"spec containers 0 livenessProbe httpGet path":  "/healthz",
			"spec containers 0 livenessProbe httpGet port":  "admin",
			"spec containers 0 readinessProbe httpGet path": "/readyz",
			"spec containers 0 readinessProbe httpGet port": "admin",
			"spec containers 0 startupProbe httpGet path":   "/healthz",
			"spec containers 0 startupProbe httpGet port":   "admin",
		} {
			if got := text(template, path); got != want {
				t.Errorf("%s: %s = %q, want %q", name, path, got, want)
			}
		}
		if got := ports(template)["admin"]; got != admin || admin == "" {
			t.Errorf("%s: port admin = %s, want %s, that of ADMIN_ADDR", name, got, admin)
		}
	}
}

// In-flight work ends before Kubernetes kills the pod: preStop and SHUTDOWN_GRACE count from the same start.
func TestPods_StopInTime(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"ingest", "tiktok-worker"} {
		template := podTemplates(t)[name]
		setting := cmp.Or(environment(template)["SHUTDOWN_GRACE"], variables(t, name)["SHUTDOWN_GRACE"].Default)
		grace, err := time.ParseDuration(setting)
		if err != nil {
			t.Fatal(err)
		}
		preStop, _ := at(template, "spec containers 0 lifecycle preStop sleep seconds").(int)
		limit, _ := at(template, "spec terminationGracePeriodSeconds").(int)
		if needed := grace + time.Duration(preStop)*time.Second; time.Duration(limit)*time.Second <= needed {
			t.Errorf("%s is killed after %d s, want more than %s", name, limit, needed)
		}
	}
}

// selected returns the pods that a selector names; none: all pods.
func selected(selector any) (names []string) {
	if name := text(selector, "matchLabels app.kubernetes.io/name"); name != "" {
		names = append(names, name)
	}
	for _, expression := range list(selector, "matchExpressions") {
		if text(expression, "key") == "app.kubernetes.io/name" && text(expression, "operator") == "In" {
			for _, name := range list(expression, "values") {
				names = append(names, fmt.Sprint(name))
			}
		}
	}
	return names
}

// Every selector names pods that exist; services lead to ports that their pods have.
func TestSelectors_SelectExistingPods(t *testing.T) {
	t.Parallel()
	pods := podTemplates(t)
	for object, o := range manifests(t) {
		names := slices.Concat(selected(at(o, "spec selector")), selected(at(o, "spec podSelector")))
		if name := text(o, "spec selector app.kubernetes.io/name"); name != "" { // a service
			names = append(names, name)
			for _, p := range list(o, "spec ports") {
				if target := text(p, "targetPort"); ports(pods[name])[target] == "" {
					t.Errorf("%s leads to port %s, which %s does not have", object, target, name)
				}
			}
		}
		for _, name := range names {
			if pods[name] == nil {
				t.Errorf("%s selects %s, which does not exist", object, name)
			}
		}
	}
}

// All traffic is denied first. Then each pod reaches what it needs, by that port alone. The internet's rule
// excludes the cluster's networks and the provider's metadata service.
func TestNetworkPolicies_LimitEgress(t *testing.T) {
	t.Parallel()
	want := map[string]string{
		"nothing-else": "all: [Ingress Egress]",
		"names": "all: [Egress] port=53 protocol=UDP port=53 protocol=TCP " +
			"kubernetes.io/metadata.name=kube-system k8s-app=kube-dns",
		"postgres": "ingest migrate prune: [Egress] port=5432 protocol=TCP purchase-relay/postgres=true " +
			"cidr=10.0.0.0/8 cidr=172.16.0.0/12 cidr=192.168.0.0/16 cidr=fc00::/7",
		"nats": "ingest provision tiktok-worker: [Egress] port=4222 protocol=TCP purchase-relay/nats=true",
		"internet": "ingest tiktok-worker: [Egress] port=443 protocol=TCP " +
			"cidr=0.0.0.0/0 except=10.0.0.0/8 except=100.64.0.0/10 except=172.16.0.0/12 " +
			"except=192.168.0.0/16 except=169.254.0.0/16 cidr=2000::/3",
		"ingest":        "ingest: [Ingress]",
		"tiktok-worker": "tiktok-worker: [Ingress]",
	}
	for object, o := range manifests(t) {
		if name, ok := strings.CutPrefix(object, "NetworkPolicy "); ok {
			pods := cmp.Or(strings.Join(selected(at(o, "spec podSelector")), " "), "all")
			types := fmt.Sprint(list(o, "spec policyTypes"))
			rules := leaves("", at(o, "spec egress"))
			if got := strings.TrimSpace(pods + ": " + types + rules); got != want[name] {
				t.Errorf("policy %s:\n got %s\nwant %s", name, got, want[name])
			}
			delete(want, name)
		}
	}
	if len(want) > 0 {
		t.Errorf("missing policies: %v", want)
	}
}

// The namespace rejects, audits and warns of pods that are not restricted, by the rules of a fixed version.
func TestNamespace_RestrictsPods(t *testing.T) {
	t.Parallel()
	namespace := manifests(t)["Namespace purchase-relay"]
	for _, mode := range []string{"enforce", "audit", "warn"} {
		label := "metadata labels pod-security.kubernetes.io/" + mode
		level, version := text(namespace, label), text(namespace, label+"-version")
		if level != "restricted" || !strings.HasPrefix(version, "v1.") {
			t.Errorf("%s = %q, version %q, want restricted of a fixed version", mode, level, version)
		}
	}
}

// The autoscaler reads an existing metric from an existing service, under a host name that ingest accepts.
func TestAutoscaler_ReadsExistingMetric(t *testing.T) {
	t.Parallel()
	all := manifests(t)
	scaler := all["ScaledObject tiktok-worker"]
	for path, want := range map[string]string{
		"spec scaleTargetRef name":     "tiktok-worker",
		"spec triggers 0 metadata url": "http://ingest-admin.purchase-relay.svc:8081/metrics",
		"spec triggers 1":              "",
	} {
		if got := text(scaler, path); got != want {
			t.Errorf("%s = %q, want %q", path, got, want)
		}
	}
	if got := text(all["Service ingest-admin"], "spec ports 0 port"); got != "8081" {
		t.Errorf("ingest-admin's port = %s, want 8081", got)
	}
	hosts := strings.Split(environment(podTemplates(t)["ingest"])["ADMIN_HOSTS"], ",")
	for _, want := range []string{"ingest-admin", "ingest-admin.purchase-relay.svc"} {
		if !slices.Contains(hosts, want) {
			t.Errorf("ADMIN_HOSTS = %v, want %s among them", hosts, want)
		}
	}
	metric, own := strings.CutPrefix(text(scaler, "spec triggers 0 metadata valueLocation"), "purchase_relay_")
	if !own || !strings.Contains(read(t, "docs/metrics.md"), "| `"+metric+"` | gauge |") {
		t.Errorf("metric = %s, want one of docs/metrics.md", metric)
	}
}
