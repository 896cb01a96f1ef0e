package validate_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/template"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	admission "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

const namespace = "sluice"

// cluster is what the manifests ask for.
type cluster struct {
	objects []metav1.Object
	// files has the names of the objects' files.
	files map[metav1.Object]string
	pods  []pod
}

// pod is what a Deployment or a Job makes.
type pod struct {
	owner  string
	labels labels.Set
	spec   *corev1.PodSpec
}

// container is the only one.
func (p pod) container() *corev1.Container { return &p.spec.Containers[0] }

// named returns the object of the type with the name, and whether there is one.
func named[T metav1.Object](c *cluster, name string) (object T, ok bool) {
	for _, o := range c.objects {
		if o, is := o.(T); is && o.GetName() == name {
			return o, true
		}
	}
	return object, false
}

// all returns the objects of the type.
func all[T metav1.Object](c *cluster) (objects []T) {
	for _, o := range c.objects {
		if o, is := o.(T); is {
			objects = append(objects, o)
		}
	}
	return objects
}

// decoder decodes into the types of Kubernetes and of the Prometheus operator,
// and refuses fields that they do not have, or that come twice.
func decoder(t *testing.T) runtime.Decoder {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, autoscalingv2.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme,
		networkingv1.AddToScheme, policyv1.AddToScheme, monitoringv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
}

// notObjects are the files that are for other programs.
var notObjects = []string{"kustomization.yaml", "prometheus-adapter.yaml"}

func readCluster(t *testing.T) *cluster {
	t.Helper()
	decode := decoder(t)
	paths, err := filepath.Glob(filepath.Join(manifests, "*.yaml"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no manifests in %s: %v", manifests, err)
	}
	c := &cluster{files: map[metav1.Object]string{}}
	for _, path := range paths {
		file := filepath.Base(path)
		if slices.Contains(notObjects, file) {
			continue
		}
		documents := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(readFile(t, path))))
		for {
			document, err := documents.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			decoded, _, err := decode.Decode(document, nil, nil)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			object := decoded.(metav1.Object)
			c.objects = append(c.objects, object)
			c.files[object] = file
		}
	}
	for _, d := range all[*appsv1.Deployment](c) {
		c.pods = append(c.pods, pod{d.Name, d.Spec.Template.Labels, &d.Spec.Template.Spec})
	}
	for _, j := range all[*batchv1.Job](c) {
		c.pods = append(c.pods, pod{j.Name, j.Spec.Template.Labels, &j.Spec.Template.Spec})
	}
	if len(c.pods) != 3 {
		t.Fatalf("%d kinds of pods, want those of api, consume and migrate", len(c.pods))
	}
	return c
}

// selected are the kinds of pods that the selector matches, at least one.
func (c *cluster) selected(t *testing.T, what string, by *metav1.LabelSelector) (matching []pod) {
	t.Helper()
	selector, err := metav1.LabelSelectorAsSelector(by)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	for _, p := range c.pods {
		if selector.Matches(p.labels) {
			matching = append(matching, p)
		}
	}
	if len(matching) == 0 {
		t.Errorf("%s: its selector %v matches nothing", what, selector)
	}
	return matching
}

// port is the number of the container's port, by its name or number.
func (p pod) port(t *testing.T, what string, port intstr.IntOrString) int32 {
	t.Helper()
	for _, have := range p.container().Ports {
		if have.Name == port.StrVal && port.Type == intstr.String ||
			have.ContainerPort == port.IntVal && port.Type == intstr.Int {
			return have.ContainerPort
		}
	}
	t.Errorf("%s: %s has no port %s", what, p.owner, port.String())
	return 0
}

// environment is what the container gets, as NAME=value.
func (c *cluster) environment(t *testing.T, p pod) (env []string) {
	t.Helper()
	for _, from := range p.container().EnvFrom {
		if from.ConfigMapRef == nil {
			t.Fatalf("%s: envFrom something else than a ConfigMap", p.owner)
		}
		config, ok := named[*corev1.ConfigMap](c, from.ConfigMapRef.Name)
		if !ok {
			t.Fatalf("%s: there is no ConfigMap %s", p.owner, from.ConfigMapRef.Name)
		}
		for name, value := range config.Data {
			env = append(env, name+"="+value)
		}
	}
	for _, one := range p.container().Env {
		if one.ValueFrom != nil {
			t.Fatalf("%s: %s is not a plain value", p.owner, one.Name)
		}
		env = append(env, one.Name+"="+one.Value)
	}
	return env
}

// secretFiles are the files of the container's one volume, by their name in it.
func (c *cluster) secretFiles(t *testing.T, p pod) map[string]string {
	t.Helper()
	mounts, volumes := p.container().VolumeMounts, p.spec.Volumes
	if len(mounts) != 1 || len(volumes) != 1 || mounts[0].Name != volumes[0].Name {
		t.Fatalf("%s: mounts %v of the volumes %v", p.owner, mounts, volumes)
	}
	if m := mounts[0]; m.MountPath+"/" != secrets || !m.ReadOnly || m.SubPath != "" {
		t.Errorf("%s: mounts %+v, want all of the secrets, read-only, at %s", p.owner, m, secrets)
	}
	source := volumes[0].Secret
	if source == nil || source.DefaultMode == nil || *source.DefaultMode != 0o440 {
		t.Fatalf("%s: the volume is %+v, want a secret of mode 0440", p.owner, volumes[0].VolumeSource)
	}
	secret, ok := named[*corev1.Secret](c, source.SecretName)
	if !ok {
		t.Fatalf("%s: there is no Secret %s", p.owner, source.SecretName)
	}
	if source.Items == nil {
		return secret.StringData
	}
	files := map[string]string{}
	for _, item := range source.Items {
		text, ok := secret.StringData[item.Key]
		if !ok {
			t.Errorf("%s: the Secret %s has no key %s", p.owner, secret.Name, item.Key)
		}
		files[item.Path] = text
	}
	return files
}

func TestManifestsDecode(t *testing.T) {
	c := readCluster(t)
	for _, o := range c.objects {
		if _, is := o.(*corev1.Namespace); is {
			if o.GetName() != namespace {
				t.Errorf("%s: the namespace is %s, want %s", c.files[o], o.GetName(), namespace)
			}
			continue
		}
		if o.GetNamespace() != namespace {
			t.Errorf("%s: %s is in the namespace %q, want %q", c.files[o], o.GetName(), o.GetNamespace(), namespace)
		}
	}
	// That it would say so.
	const head = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"
	for _, text := range []string{head + "date: {}\n", head + "immutable: true\nimmutable: true\n", "apiVersion: v1\nkind: Config\n"} {
		if _, _, err := decoder(t).Decode([]byte(text), nil, nil); err == nil {
			t.Errorf("decoded %q", text)
		}
	}
}

func TestManifestsSelectors(t *testing.T) {
	c := readCluster(t)
	for _, d := range all[*appsv1.Deployment](c) {
		matching := c.selected(t, "Deployment "+d.Name, d.Spec.Selector)
		for _, spread := range d.Spec.Template.Spec.TopologySpreadConstraints {
			matching = append(matching, c.selected(t, "spread of "+d.Name, spread.LabelSelector)...)
		}
		for _, p := range matching {
			if p.owner != d.Name {
				t.Errorf("Deployment %s: a selector matches %s", d.Name, p.owner)
			}
		}
	}
	for _, b := range all[*policyv1.PodDisruptionBudget](c) {
		if matching := c.selected(t, "PodDisruptionBudget "+b.Name, b.Spec.Selector); len(matching) != 1 || matching[0].owner != b.Name {
			t.Errorf("PodDisruptionBudget %s: is of %v", b.Name, matching)
		}
	}
	for _, n := range all[*networkingv1.NetworkPolicy](c) {
		c.selected(t, "NetworkPolicy "+n.Name, &n.Spec.PodSelector)
	}
}

func TestManifestsPorts(t *testing.T) {
	c := readCluster(t)
	for _, p := range c.pods {
		container := p.container()
		for name, probe := range map[string]*corev1.Probe{
			"startup": container.StartupProbe, "readiness": container.ReadinessProbe, "liveness": container.LivenessProbe,
		} {
			if len(container.Ports) == 0 {
				continue // the migration ends
			}
			if probe == nil || probe.HTTPGet == nil {
				t.Errorf("%s: no %s probe over HTTP", p.owner, name)
				continue
			}
			p.port(t, name+" probe", probe.HTTPGet.Port)
		}
		for _, arg := range container.Args {
			if _, addr, ok := strings.Cut(arg, "listen="); ok {
				number, err := strconv.Atoi(addr[strings.LastIndexByte(addr, ':')+1:])
				if err != nil {
					t.Fatalf("%s: %s: %v", p.owner, arg, err)
				}
				p.port(t, arg, intstr.FromInt(number))
			}
		}
	}
	for _, s := range all[*corev1.Service](c) {
		for _, p := range c.selected(t, "Service "+s.Name, metav1.SetAsLabelSelector(s.Spec.Selector)) {
			for _, port := range s.Spec.Ports {
				p.port(t, "Service "+s.Name, port.TargetPort)
			}
		}
	}
	for _, m := range all[*monitoringv1.PodMonitor](c) {
		for _, p := range c.selected(t, "PodMonitor "+m.Name, &m.Spec.Selector) {
			for _, endpoint := range m.Spec.PodMetricsEndpoints {
				p.port(t, "PodMonitor "+m.Name, intstr.FromString(*endpoint.Port))
			}
		}
	}
	reachable := map[string]bool{}
	for _, n := range all[*networkingv1.NetworkPolicy](c) {
		for _, p := range c.selected(t, "NetworkPolicy "+n.Name, &n.Spec.PodSelector) {
			for _, rule := range n.Spec.Ingress {
				for _, port := range rule.Ports {
					p.port(t, "NetworkPolicy "+n.Name, *port.Port)
					reachable[p.owner] = true
				}
			}
		}
	}
	for _, p := range c.pods {
		if want := len(p.container().Ports) > 0; reachable[p.owner] != want {
			t.Errorf("%s: can be reached: %v, want %v", p.owner, reachable[p.owner], want)
		}
	}
}

// TestManifestsEgress checks that the network lets every pod reach the servers
// that it is told of.
func TestManifestsEgress(t *testing.T) {
	c := readCluster(t)
	allowed := map[string]map[string]bool{}
	for _, n := range all[*networkingv1.NetworkPolicy](c) {
		for _, p := range c.selected(t, "NetworkPolicy "+n.Name, &n.Spec.PodSelector) {
			if allowed[p.owner] == nil {
				allowed[p.owner] = map[string]bool{}
			}
			for _, rule := range n.Spec.Egress {
				for _, port := range rule.Ports {
					allowed[p.owner][port.Port.String()] = true
				}
			}
		}
	}
	for _, p := range c.pods {
		ports := []string{"53"}
		for _, variable := range c.environment(t, p) {
			name, value, _ := strings.Cut(variable, "=")
			switch name {
			case "SLUICE_KAFKA_BROKERS":
				for broker := range strings.SplitSeq(value, ",") {
					ports = append(ports, broker[strings.LastIndexByte(broker, ':')+1:])
				}
			case "SLUICE_CLICKHOUSE_URL":
				u, err := url.Parse(value)
				if err != nil {
					t.Fatal(err)
				}
				ports = append(ports, u.Port())
			}
		}
		if len(ports) < 3 {
			t.Errorf("%s: knows the ports %v alone", p.owner, ports)
		}
		for _, port := range ports {
			if !allowed[p.owner][port] {
				t.Errorf("%s: must not reach port %s", p.owner, port)
			}
		}
	}
}

func TestManifestsCommands(t *testing.T) {
	c := readCluster(t)
	for _, p := range c.pods {
		args, files := p.container().Args, c.secretFiles(t, p)
		if len(p.container().Command) > 0 {
			t.Errorf("%s: a command in the place of the image's", p.owner)
		}
		checkArguments(t, args)
		var variables []string
		for _, variable := range c.environment(t, p) {
			name, _, _ := strings.Cut(variable, "=")
			variables = append(variables, name)
		}
		checkVariables(t, variables, "api", "consume")
		used := map[string]bool{}
		for _, arg := range args {
			if _, path, ok := strings.Cut(arg, "="+secrets); ok {
				used[path] = true
				if _, ok := files[path]; !ok {
					t.Errorf("%s: %s: there is no such file", p.owner, arg)
				}
			}
		}
		for name := range files {
			if !used[name] {
				t.Errorf("%s: has the secret %s without need", p.owner, name)
			}
		}
	}
	for _, m := range all[*monitoringv1.PodMonitor](c) {
		for _, endpoint := range m.Spec.PodMetricsEndpoints {
			if endpoint.Authorization == nil {
				continue
			}
			from := endpoint.Authorization.Credentials
			secret, ok := named[*corev1.Secret](c, from.Name)
			if !ok || secret.StringData[from.Key] == "" {
				t.Errorf("PodMonitor %s: there is no Secret %s with the key %s", m.Name, from.Name, from.Key)
			}
		}
	}
}

func TestManifestsStart(t *testing.T) {
	c := readCluster(t)
	for _, p := range c.pods {
		t.Run(p.owner, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for name, text := range c.secretFiles(t, p) {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			checkStart(t, dir, p.container().Args, c.environment(t, p))
		})
	}
}

// TestManifestsRestricted checks the pods as a cluster does that enforces the
// namespace's Pod Security level, and what that does not ask for.
func TestManifestsRestricted(t *testing.T) {
	c := readCluster(t)
	ns, ok := named[*corev1.Namespace](c, namespace)
	if !ok || ns.Labels[admission.EnforceLevelLabel] != string(admission.LevelRestricted) {
		t.Fatalf("the namespace has the labels %v", ns.GetLabels())
	}
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := admission.LevelVersion{Level: admission.LevelRestricted, Version: admission.LatestVersion()}
	isTrue, isFalse := func(b *bool) bool { return b != nil && *b }, func(b *bool) bool { return b != nil && !*b }
	for _, p := range c.pods {
		if len(p.spec.Containers) != 1 || len(p.spec.InitContainers) != 0 {
			t.Fatalf("%s: more than one container", p.owner)
		}
		for _, result := range evaluator.EvaluatePod(restricted, &metav1.ObjectMeta{Labels: p.labels}, p.spec) {
			if !result.Allowed {
				t.Errorf("%s: would be refused: %s: %s", p.owner, result.ForbiddenReason, result.ForbiddenDetail)
			}
		}
		container := p.container()
		limit, request := container.Resources.Limits.Memory(), container.Resources.Requests.Memory()
		for what, ok := range map[string]bool{
			"readOnlyRootFilesystem":       isTrue(container.SecurityContext.ReadOnlyRootFilesystem),
			"automountServiceAccountToken": isFalse(p.spec.AutomountServiceAccountToken),
			"enableServiceLinks":           isFalse(p.spec.EnableServiceLinks),
			"memory":                       !request.IsZero() && request.Cmp(*limit) <= 0,
			"GOMEMLIMIT":                   goMemoryLimit(t, container) <= limit.Value()*4/5,
		} {
			if !ok {
				t.Errorf("%s: %s is not as it should be", p.owner, what)
			}
		}
	}
}

// goMemoryLimit is Go's soft limit of memory in bytes, 0 for none.
func goMemoryLimit(t *testing.T, container *corev1.Container) int64 {
	t.Helper()
	for _, variable := range container.Env {
		if variable.Name == "GOMEMLIMIT" {
			// Go writes KiB, MiB and GiB where Kubernetes writes Ki, Mi and Gi.
			limit, err := resource.ParseQuantity(strings.TrimSuffix(variable.Value, "B"))
			if err != nil {
				t.Fatalf("GOMEMLIMIT=%s: %v", variable.Value, err)
			}
			return limit.Value()
		}
	}
	return 0
}

func TestManifestsAutoscalers(t *testing.T) {
	c := readCluster(t)
	config, ok := named[*corev1.ConfigMap](c, "sluice")
	if !ok {
		t.Fatal("there is no ConfigMap sluice")
	}
	partitions, err := strconv.Atoi(config.Data["SLUICE_KAFKA_PARTITIONS"])
	if err != nil || partitions < 1 {
		t.Fatalf("partitions: %v", err)
	}
	scaled := map[string]*autoscalingv2.HorizontalPodAutoscaler{}
	for _, h := range all[*autoscalingv2.HorizontalPodAutoscaler](c) {
		to := h.Spec.ScaleTargetRef
		target, ok := named[*appsv1.Deployment](c, to.Name)
		if !ok || to.Kind != "Deployment" || to.APIVersion != "apps/v1" {
			t.Fatalf("HorizontalPodAutoscaler %s: there is no %s %s of %s", h.Name, to.Kind, to.Name, to.APIVersion)
		}
		// Else each apply would set them back.
		if target.Spec.Replicas != nil {
			t.Errorf("Deployment %s: the replicas are the autoscaler's", target.Name)
		}
		if h.Spec.MinReplicas == nil || *h.Spec.MinReplicas < 2 || *h.Spec.MinReplicas > h.Spec.MaxReplicas {
			t.Errorf("HorizontalPodAutoscaler %s: from %v to %d", h.Name, h.Spec.MinReplicas, h.Spec.MaxReplicas)
		}
		scaled[target.Name] = h
	}
	consume := scaled["sluice-consume"]
	if scaled["sluice-api"] == nil || consume == nil {
		t.Fatal("not both of api and consume have an autoscaler")
	}
	if int(consume.Spec.MaxReplicas) > partitions {
		t.Errorf("%d consumers for %d partitions", consume.Spec.MaxReplicas, partitions)
	}
	rules := readAdapterRules(t)
	for _, metric := range consume.Spec.Metrics {
		if metric.External == nil {
			t.Errorf("HorizontalPodAutoscaler %s: scales on %s, want an external metric", consume.Name, metric.Type)
			continue
		}
		if query, ok := rules[metric.External.Metric.Name]; !ok {
			t.Errorf("prometheus-adapter.yaml has no rule for %s", metric.External.Metric.Name)
		} else if want := `sum(max by (partition) (sluice_consumer_lag_records{namespace="sluice"}))`; query != want {
			t.Errorf("the adapter asks %s, want %s", query, want)
		}
	}
}

// adapterConfig is what prometheus-adapter.yaml may have: the adapter's own
// types are in no module that can be had.
type adapterConfig struct {
	ExternalRules []struct {
		SeriesQuery string `json:"seriesQuery"`
		Resources   struct {
			Overrides map[string]struct {
				Resource string `json:"resource"`
			} `json:"overrides"`
		} `json:"resources"`
		MetricsQuery string `json:"metricsQuery"`
	} `json:"externalRules"`
}

// readAdapterRules returns what the adapter asks Prometheus for each metric, for
// an autoscaler of the namespace.
func readAdapterRules(t *testing.T) map[string]string {
	t.Helper()
	var config adapterConfig
	if err := yaml.UnmarshalStrict([]byte(readFile(t, filepath.Join(manifests, "prometheus-adapter.yaml"))), &config); err != nil {
		t.Fatalf("prometheus-adapter.yaml: %v", err)
	}
	queries := map[string]string{}
	for _, rule := range config.ExternalRules {
		query, err := template.New("query").Delims("<<", ">>").Option("missingkey=error").Parse(rule.MetricsQuery)
		if err != nil {
			t.Fatalf("prometheus-adapter.yaml: %v", err)
		}
		var matchers []string
		for label, of := range rule.Resources.Overrides {
			if of.Resource == "namespace" {
				matchers = append(matchers, fmt.Sprintf("%s=%q", label, namespace))
			}
		}
		var text bytes.Buffer
		err = query.Execute(&text, map[string]string{"Series": rule.SeriesQuery, "LabelMatchers": strings.Join(matchers, ",")})
		if err != nil {
			t.Fatalf("prometheus-adapter.yaml: %v", err)
		}
		queries[rule.SeriesQuery] = text.String()
	}
	return queries
}

// kustomization is what kustomization.yaml may have.
type kustomization struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Resources  []string `json:"resources"`
	Images     []struct {
		Name   string `json:"name"`
		NewTag string `json:"newTag"`
	} `json:"images"`
}

func TestKustomization(t *testing.T) {
	var k kustomization
	if err := yaml.UnmarshalStrict([]byte(readFile(t, filepath.Join(manifests, "kustomization.yaml"))), &k); err != nil {
		t.Fatalf("kustomization.yaml: %v", err)
	}
	c := readCluster(t)
	// What it leaves out is for other programs, or an example.
	leftOut := append([]string{"secret.example.yaml", "monitoring.yaml"}, notObjects...)
	paths, err := filepath.Glob(filepath.Join(manifests, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if file := filepath.Base(path); slices.Contains(k.Resources, file) == slices.Contains(leftOut, file) {
			t.Errorf("%s: is a resource: %v", file, slices.Contains(k.Resources, file))
		}
	}
	for _, p := range c.pods {
		if name, _, _ := strings.Cut(p.container().Image, ":"); len(k.Images) != 1 || k.Images[0].Name != name {
			t.Errorf("%s: the image %s is not the one of kustomization.yaml, %v", p.owner, name, k.Images)
		}
	}
	if _, err := exec.LookPath("kubectl"); err != nil {
		t.Skipf("not built: %v", err)
	}
	out, err := exec.Command("kubectl", "kustomize", manifests).Output()
	if err != nil {
		t.Fatalf("kubectl kustomize: %v", err)
	}
	want := 0
	for _, o := range c.objects {
		if slices.Contains(k.Resources, c.files[o]) {
			want++
		}
	}
	if got := bytes.Count(out, []byte("\n---\n")) + 1; got != want {
		t.Errorf("built %d objects of %d", got, want)
	}
}
