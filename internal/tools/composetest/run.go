package main

import (
	"archive/tar"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// step is one of the rehearsal's.
type step struct {
	name string
	do   func(ctx context.Context) (said string, err error)
}

func run(ctx context.Context, args, environ []string, out io.Writer) error {
	flags := flag.NewFlagSet("composetest", flag.ContinueOnError)
	flags.SetOutput(out)
	cluster := flags.Bool("cluster", false, "with three NATS servers (deploy/compose.cluster.yml)")
	keep := flags.Bool("keep", false, "leave the stack as it is after a failure")
	if err := flags.Parse(args); err != nil {
		return err
	}
	e, err := newEngine(environ, out)
	if err != nil {
		return err
	}
	if why := e.missing(ctx); why != "" {
		_, _ = fmt.Fprintf(out, "compose-test is skipped: %s\n", why)
		return nil
	}
	r := &rehearsal{engine: e, queue: []string{"nats"}}
	if *cluster {
		e.files = append(e.files, "-f", "deploy/compose.cluster.yml")
		r.queue = []string{"nats", "nats-2", "nats-3"}
	}
	began := time.Now()
	for _, s := range r.steps() {
		since := time.Now()
		said, err := s.do(ctx)
		if err != nil {
			err = fmt.Errorf("%s: %w", s.name, err)
			if *keep {
				return fmt.Errorf("%w\n(the stack is left: docker compose -p %s down -v)", err, project)
			}
			r.tell(context.WithoutCancel(ctx))
			return errors.Join(err, r.clear(context.WithoutCancel(ctx), true))
		}
		_, _ = fmt.Fprintf(out, "%7.1f s  %-46s %s\n", time.Since(since).Seconds(), s.name, said)
	}
	_, _ = fmt.Fprintf(out, "compose-test passed: %d purchases, none lost, in %s\n", r.sold, time.Since(began).Round(time.Second))
	return nil
}

// rehearsal counts what was sold.
type rehearsal struct {
	*engine
	queue []string // the NATS servers
	sold  int
}

func (r *rehearsal) steps() []step {
	return []step{
		{"nothing is left of another rehearsal", func(ctx context.Context) (string, error) { return "", r.clear(ctx, false) }},
		{"a real token without real secrets is refused", r.refusedWithDefaults},
		{"docker compose up --build --wait", r.up("--build")},
		{"images: size, content, user", r.images},
		{"a purchase by the printed command", r.buy(1)},
		{"up --scale tiktok-worker=3", r.scale},
		{"300 purchases for three workers", r.buy(300)},
		{"kill workers, ingest, NATS; restart Postgres", r.disturb},
		{"down, and up again: the data is kept", r.downAndUp},
		{"purchases after that", r.buy(5)},
		{"down -v leaves nothing", func(ctx context.Context) (string, error) { return "", r.clear(ctx, true) }},
	}
}

// refusedWithDefaults checks that Compose asks for real secrets once there is a real token.
func (r *rehearsal) refusedWithDefaults(ctx context.Context) (string, error) {
	withToken := *r.engine
	withToken.env = append(slices.Clone(r.env), "TIKTOK_ACCESS_TOKEN=not-a-real-one")
	_, err := withToken.compose(ctx, "config", "--quiet")
	if err == nil || !strings.Contains(err.Error(), "STRIPE_WEBHOOK_SECRET") {
		return "", fmt.Errorf("compose config: error = %w, want one that names STRIPE_WEBHOOK_SECRET", err)
	}
	return "STRIPE_WEBHOOK_SECRET is asked for", nil
}

func (r *rehearsal) up(args ...string) func(ctx context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		_, err := r.compose(ctx, append([]string{"up", "-d", "--wait"}, args...)...)
		if err == nil {
			err = r.workers(ctx, 1)
		}
		return "", err
	}
}

// tell prints what the containers were and said, before they are gone.
func (r *rehearsal) tell(ctx context.Context) {
	for _, args := range [][]string{{"ps", "-a"}, {"logs", "--no-color", "--tail", "20"}} {
		said, err := r.compose(ctx, args...)
		if err != nil {
			said = err.Error() + "\n"
		}
		_, _ = fmt.Fprint(r.out, said)
	}
}

// clear takes everything down and looks whether anything is left.
func (r *rehearsal) clear(ctx context.Context, images bool) error {
	args := []string{"down", "-v", "--remove-orphans"}
	if images {
		args = append(args, "--rmi", "local")
	}
	if _, err := r.compose(ctx, args...); err != nil {
		return err
	}
	left, err := r.left(ctx)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left: %v", left)
	}
	return err
}

const largest = 25e6 // bytes of a production image

// images looks into what would be shipped.
func (r *rehearsal) images(ctx context.Context) (string, error) {
	var said []string
	for name, files := range map[string][]string{
		"ingest":        {"LICENCES", "etc/ssl/certs/ca-certificates.crt", "ingest", "zoneinfo.zip"},
		"tiktok-worker": {"LICENCES", "etc/ssl/certs/ca-certificates.crt", "tiktok-worker", "zoneinfo.zip"},
	} {
		image := project + "-" + name
		out, err := r.docker(ctx, time.Minute, "image", "inspect", "-f", "{{.Size}} {{.Config.User}} {{index .Config.Labels \"org.opencontainers.image.version\"}}", image)
		if err != nil {
			return "", err
		}
		fields := strings.Fields(out)
		size, err := strconv.ParseFloat(fields[0], 64)
		if err != nil || size > largest || len(fields) != 3 || fields[1] != "65532:65532" || fields[2] != "rehearsal" {
			return "", fmt.Errorf("%s: size, user, version: %s (%w)", image, out, err)
		}
		got, err := r.files(ctx, image)
		if err != nil {
			return "", err
		}
		if !slices.Equal(got, files) {
			return "", fmt.Errorf("%s holds %v, want %v", image, got, files)
		}
		version, err := r.docker(ctx, time.Minute, "run", "--rm", "--network", "none", image, "--version")
		if err != nil || !strings.HasPrefix(version, name+" rehearsal (") {
			return "", fmt.Errorf("%s --version: %q, %w", name, version, err)
		}
		said = append(said, fmt.Sprintf("%s %.1f MB", name, size/1e6))
	}
	slices.Sort(said)
	return strings.Join(said, ", "), nil
}

// files lists an image's files, but for what the engine itself puts into every container.
func (r *rehearsal) files(ctx context.Context, image string) (list []string, err error) {
	id, err := r.docker(ctx, time.Minute, "create", image)
	if err != nil {
		return nil, err
	}
	id = strings.TrimSpace(id)
	defer func() {
		_, removed := r.docker(ctx, time.Minute, "rm", id)
		err = errors.Join(err, removed)
	}()
	dir, err := os.MkdirTemp("", "composetest")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "image.tar")
	if _, err := r.docker(ctx, time.Minute, "export", "-o", file, id); err != nil {
		return nil, err
	}
	f, err := os.Open(file) //nolint:gosec // ours
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	engines := []string{".dockerenv", "dev/console", "etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab"}
	for archive := tar.NewReader(f); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(list)
			return list, nil
		}
		if err != nil {
			return nil, err
		}
		if header.Typeflag != tar.TypeDir && !slices.Contains(engines, header.Name) {
			list = append(list, header.Name)
		}
	}
}

var processed = regexp.MustCompile(`(?m)^ *(\d+) × 200 \{"status":"(?:processed|duplicate)"\}|^cs_\S+  200 \{"status":"(?:processed|duplicate)"\}`)

// send sells n purchases from inside the stack and returns an error unless each was answered 200.
func (r *rehearsal) send(ctx context.Context, n int, flags ...string) error {
	out, err := r.compose(ctx, append([]string{"exec", "-T", "tiktok-simulator", "/stripegen", "-n", strconv.Itoa(n)}, flags...)...)
	if err != nil {
		return err
	}
	taken := 0
	for _, m := range processed.FindAllStringSubmatch(out, -1) {
		many := 1
		if m[1] != "" {
			if many, err = strconv.Atoi(m[1]); err != nil {
				return err
			}
		}
		taken += many
	}
	if taken != n {
		return fmt.Errorf("%d of %d were taken:\n%s", taken, n, out)
	}
	r.sold += n
	return nil
}

// buy sends purchases and looks for them in all three places.
func (r *rehearsal) buy(n int) func(ctx context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		if err := r.send(ctx, n); err != nil {
			return "", err
		}
		if err := r.settled(ctx, r.sold); err != nil {
			return "", err
		}
		return fmt.Sprintf("%d on the dashboard, accepted", r.sold), r.dashboard(ctx, r.sold)
	}
}

func (r *rehearsal) scale(ctx context.Context) (string, error) {
	if _, err := r.compose(ctx, "up", "-d", "--wait", "--scale", "tiktok-worker=3"); err != nil {
		return "", err
	}
	return "three workers run", r.workers(ctx, 3)
}

// disturb breaks one container after another while purchases come in.
func (r *rehearsal) disturb(ctx context.Context) (string, error) {
	const n = 600
	sent := make(chan error, 1)
	go func() { sent <- r.send(ctx, n, "-rate", "15", "-retry", "30", "-concurrency", "32") }()
	broken := r.breakAll(ctx)
	if err := errors.Join(broken, <-sent); err != nil {
		return "", err
	}
	if err := r.settled(ctx, r.sold); err != nil {
		return "", err
	}
	if err := r.dashboard(ctx, r.sold); err != nil {
		return "", err
	}
	repeats, err := r.onceAtTikTok(ctx, r.sold)
	return fmt.Sprintf("%d accepted, %d sent again under their own event_id", r.sold, repeats), err
}

func (r *rehearsal) breakAll(ctx context.Context) error {
	if err := r.killOne(ctx); err != nil {
		return err
	}
	again := []string{"up", "-d", "--wait", "--no-recreate", "--scale", "tiktok-worker=3"}
	for _, args := range [][]string{
		again,
		{"kill", "-s", "KILL", "tiktok-worker"}, // all three
		again,
		{"kill", "-s", "KILL", "ingest"},
		again,
		{"kill", "-s", "KILL", r.queue[0]},
		again,
		{"restart", r.queue[len(r.queue)-1]},
		{"restart", "postgres"},
		again,
	} {
		if _, err := r.compose(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// killOne kills one of the workers: what it held is the others'.
func (r *rehearsal) killOne(ctx context.Context) error {
	out, err := r.compose(ctx, "ps", "-q", "tiktok-worker")
	if err != nil {
		return err
	}
	ids := strings.Fields(out)
	if len(ids) != 3 {
		return fmt.Errorf("%d workers run, want 3", len(ids))
	}
	_, err = r.docker(ctx, time.Minute, "kill", ids[0])
	return err
}

// downAndUp removes the containers and makes new ones on the same volumes. (The simulator forgets: it has none.)
func (r *rehearsal) downAndUp(ctx context.Context) (string, error) {
	if _, err := r.compose(ctx, "down"); err != nil {
		return "", err
	}
	if _, err := r.up()(ctx); err != nil {
		return "", err
	}
	if err := r.settled(ctx, r.sold); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d purchases", r.sold), r.dashboard(ctx, r.sold)
}
