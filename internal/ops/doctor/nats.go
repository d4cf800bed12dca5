package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"purchase-relay/internal/queue"
)

const (
	checkNATS    = "start NATS; check NATS_URL, DNS and firewall"
	notPermitted = "this user has no permission to read it"
	provision    = "run `ingest provision` as a user that may create it, or permit ingest's user to"
	compareUsers = "compare the user's permissions with deploy/nats/nats-server.conf"
)

// NATS checks the server, the user's permissions, and the streams and consumers that the role may read.
func NATS(ctx context.Context, c queue.Config, role string, s queue.StreamConfig) []Check {
	probe, err := queue.OpenProbe(c, role)
	if err != nil {
		return []Check{judgeNATS(err)}
	}
	defer probe.Close()
	required, optional, err := probe.MissingPermissions()
	checks := []Check{
		judgeNATSVersion(probe.Version()), judgeTransport(probe.Server()),
		judgePermissions(required, optional, err),
	}
	if role == queue.RoleWorker {
		for _, consumer := range probe.Consumers(ctx) {
			checks = append(checks, judgeConsumer(consumer))
			if consumer.ClockKnown {
				checks = append(checks, judgeNATSClock(consumer.ClockAhead))
			}
		}
		return checks
	}
	var missing int64
	for _, stream := range probe.Streams(ctx, s) {
		if errors.Is(stream.Err, queue.ErrMissing) {
			missing += stream.Wanted
		}
		checks = append(checks, judgeStream(stream))
	}
	for _, consumer := range probe.Consumers(ctx) {
		checks = append(checks, judgeConsumer(consumer))
	}
	storage, err := probe.Storage(ctx)
	return append(checks, judgeStorage(storage, missing, err))
}

func judgeNATS(err error) Check {
	const what = "NATS"
	switch {
	case errors.Is(err, queue.ErrCredentials):
		return Failed(what, err.Error(), "correct user and password in NATS_URL, or NATS_CREDS_FILE")
	case errors.Is(err, queue.ErrTLS):
		return Failed(what, err.Error(), "check tls:// in NATS_URL, NATS_CA_FILE, NATS_CERT_FILE, NATS_KEY_FILE "+
			"and the certificates' expiry")
	}
	return Failed(what, "no response: "+err.Error(), checkNATS)
}

// judgeNATSVersion: since 2.9 a stream can reject a second message per subject.
func judgeNATSVersion(version string) Check {
	const what = "NATS"
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(minor)
	switch {
	case errA != nil || errB != nil:
		return Warned(what, "unknown version", "use nats-server 2.10 or newer")
	case a < 2 || a == 2 && b < 9:
		return Failed(what, "nats-server "+version+" is too old", "upgrade to 2.10 or newer")
	case a == 2 && b < 10:
		return Warned(what, "nats-server "+version+" is not tested", "upgrade to 2.10 or newer")
	}
	return Passed(what, "nats-server %s responds", version)
}

func judgeTransport(server string, encrypted bool) Check {
	const what = "NATS: TLS"
	host := ""
	if u, err := url.Parse(server); err == nil {
		host = u.Hostname()
	}
	ip := net.ParseIP(host)
	switch {
	case encrypted:
		return Passed(what, "the connection is encrypted")
	case host == "localhost" || ip != nil && ip.IsLoopback():
		return Passed(what, "the server is on this machine")
	}
	return Warned(what, "the password and hashed addresses are sent unencrypted",
		"use TLS (deploy/nats/nats-server.conf), unless the network itself is encrypted")
}

func judgePermissions(required, optional []string, err error) Check {
	const what = "NATS: permissions"
	switch {
	case err != nil:
		return Failed(what, "not checked: "+err.Error(), checkNATS)
	case len(required) > 0:
		return Failed(what, "the user lacks "+strings.Join(required, ", "), compareUsers)
	case len(optional) > 0:
		return Warned(what, "the user lacks the optional "+strings.Join(optional, ", "), compareUsers)
	}
	return Passed(what, "complete")
}

func judgeRequest(what string, err error) Check {
	switch {
	case errors.Is(err, queue.ErrMissing):
		return Warned(what, err.Error(), provision)
	case errors.Is(err, queue.ErrNotPermitted):
		return Failed(what, notPermitted, compareUsers)
	case errors.Is(err, queue.ErrJetStreamOff):
		return Failed(what, err.Error(),
			"start nats-server with -js or jetstream {} and enable JetStream for the account")
	}
	return Failed(what, "unreadable: "+err.Error(), compareUsers)
}

// Shares of a limit.
const (
	warnFull = 0.8
	failFull = 0.95
)

func judgeStream(s queue.StreamState) Check {
	what := "NATS: stream " + s.Name
	if s.Err != nil {
		return judgeRequest(what, s.Err)
	}
	const drain = "check the workers, or raise NATS_MAX_BYTES"
	found := fmt.Sprintf("%d messages, %d of %d MiB", s.Messages, s.Bytes>>20, s.MaxBytes>>20)
	full := 0.0
	if s.MaxBytes > 0 {
		full = float64(s.Bytes) / float64(s.MaxBytes)
	}
	switch {
	case full >= failFull:
		return Failed(what, found+": when it is full, purchases wait in the ledger", drain)
	case len(s.Differs) > 0:
		return Warned(what, found+"; settings differ: "+strings.Join(s.Differs, ", "), provision)
	case full >= warnFull:
		return Warned(what, found, drain)
	}
	return Passed(what, "%s", found)
}

func judgeConsumer(c queue.ConsumerState) Check {
	what := "NATS: consumer " + c.Name
	switch {
	case c.Err != nil:
		return judgeRequest(what, c.Err)
	case c.Differs:
		return Warned(what, "settings differ", provision)
	}
	return Passed(what, "%d messages pending, %d in flight or delayed", c.Waiting, c.Unacknowledged)
}

// judgeNATSClock: the worker measures ages by the server's clock, so that only a large offset matters.
func judgeNATSClock(ahead time.Duration) Check {
	const what = "NATS: clock"
	found := fmt.Sprintf("differs from this machine's by %s", ahead.Abs().Round(time.Second))
	switch {
	case ahead.Abs() > 10*time.Minute:
		return Failed(what, found, SyncClocks)
	case ahead.Abs() > 10*time.Second:
		return Warned(what, found+"; ages are measured by the server's", SyncClocks)
	}
	return Passed(what, "agrees with this machine's")
}

// judgeStorage compares the account's free storage with the size of the missing streams.
func judgeStorage(s queue.Storage, missing int64, err error) Check {
	const (
		what   = "NATS: disk"
		allow  = "let the user publish on $JS.API.INFO; keep NATS_MAX_BYTES plus 2 GiB below the disk's size"
		remedy = "lower NATS_MAX_BYTES (the two other streams take 1 GiB each), " +
			"or raise the account's storage and max_file_store"
	)
	switch {
	case errors.Is(err, queue.ErrNotPermitted):
		return Warned(what, notPermitted, allow)
	case err != nil:
		return Warned(what, "unreadable: "+err.Error(), allow)
	}
	found := fmt.Sprintf("%d MiB used, %d MiB reserved", s.Used>>20, s.Reserved>>20)
	if s.Limit <= 0 {
		return Passed(what, "%s, no limit for the account", found)
	}
	left := s.Limit - int64(max(s.Used, s.Reserved)) //nolint:gosec // bytes on a disk
	found += fmt.Sprintf(" of %d MiB", s.Limit>>20)
	switch {
	case missing > left:
		return Failed(what, found+fmt.Sprintf("; missing streams need %d MiB", missing>>20), remedy)
	case float64(s.Used) > failFull*float64(s.Limit):
		return Failed(what, found, remedy)
	}
	return Passed(what, "%s", found)
}
