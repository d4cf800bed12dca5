package queue

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/message"
	"purchase-relay/internal/ops/doctor"
)

// The roles of the binaries' connections, each a user in NATS.
const (
	RoleIngest    = "ingest"
	RoleWorker    = "worker"
	RoleProvision = "provision" // only creates and changes streams and consumers
)

const (
	examineTimeout = 3 * time.Second // of one question
	mendConnection = "start it; check NATS_URL and the way there (DNS, firewall)"
	subjectInfo    = "$JS.API.INFO"
	unasked        = "this user may not ask"
	provisionIt    = "run `ingest provision` with a user that may create it, or give ingest's own user that right"
	compareUsers   = "give the user that right: compare the server's configuration with deploy/nats/nats-server.conf"
)

// Examine looks at the server, at this user's rights, and at the streams and consumers as far as the role may. It changes nothing, and
// what it says to a stream is refused by it.
func Examine(ctx context.Context, c Config, role string, s StreamConfig) []doctor.Check {
	e, check := newExaminer(c, role)
	if e == nil {
		return []doctor.Check{check}
	}
	defer e.nc.Close()
	checks := []doctor.Check{check, e.line()}
	checks = append(checks, e.rights())
	if role == RoleWorker {
		checks = append(checks, e.consumer(ctx, message.StreamPurchases, message.ConsumerWorker))
		return append(checks, e.clock(ctx)...)
	}
	var missing int64
	for _, config := range streams(s) {
		found, here := e.stream(ctx, config)
		if !here {
			missing += config.MaxBytes
		}
		checks = append(checks, found)
	}
	checks = append(checks, e.consumer(ctx, message.StreamPurchases, message.ConsumerWorker), e.consumer(ctx, message.StreamOutcomes, message.ConsumerRecorder))
	return append(checks, e.room(ctx, missing))
}

// examiner is a connection of its own that is not tried again.
type examiner struct {
	nc   *nats.Conn
	js   jetstream.JetStream
	role string

	lacks []string // subjects that this user may not use
}

func newExaminer(c Config, role string) (*examiner, doctor.Check) {
	e := &examiner{role: role}
	options := []nats.Option{
		nats.Name("purchase-relay doctor"), nats.CustomInboxPrefix("_INBOX_" + role), nats.Timeout(examineTimeout), nats.NoReconnect(),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // else nats.go prints
	}
	var err error
	if e.nc, err = nats.Connect(c.NATSURL.Reveal(), append(options, c.credentials()...)...); err != nil {
		return nil, judgeConnection(err)
	}
	if e.js, err = jetstream.New(e.nc); err != nil {
		e.nc.Close()
		return nil, judgeConnection(err)
	}
	return e, judgeVersion(e.nc.ConnectedServerVersion())
}

func judgeConnection(err error) doctor.Check {
	switch {
	case isRefusal(err):
		return doctor.Failed("NATS", "refuses the credentials", "mend user and password in NATS_URL, or NATS_CREDS_FILE")
	case isTLS(err):
		return doctor.Failed("NATS", "does not agree on TLS: "+err.Error(), "check tls:// in NATS_URL, NATS_CA_FILE, NATS_CERT_FILE, NATS_KEY_FILE, and that no certificate has expired")
	}
	return doctor.Failed("NATS", "does not answer: "+err.Error(), mendConnection)
}

// judgeVersion: streams that refuse a second message of a subject are as old as 2.9.
func judgeVersion(version string) doctor.Check {
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(minor)
	switch {
	case errA != nil || errB != nil:
		return doctor.Warned("NATS", "answers, and does not say its version", "use nats-server 2.10 or newer")
	case a < 2 || a == 2 && b < 9:
		return doctor.Failed("NATS", "is nats-server "+version+", which is too old", "update it to 2.10 or newer")
	case a == 2 && b < 10:
		return doctor.Warned("NATS", "is nats-server "+version+", older than what is tested", "update it to 2.10 or newer when convenient")
	}
	return doctor.Passed("NATS", "nats-server %s answers", version)
}

func (e *examiner) line() doctor.Check {
	return judgeLine(e.nc.ConnectedUrl(), e.nc.TLSRequired() || strings.HasPrefix(e.nc.ConnectedUrl(), "tls:"))
}

func judgeLine(server string, encrypted bool) doctor.Check {
	const what = "NATS: line"
	host := ""
	if u, err := url.Parse(server); err == nil {
		host = u.Hostname()
	}
	ip := net.ParseIP(host)
	switch {
	case encrypted:
		return doctor.Passed(what, "encrypted")
	case host == "localhost" || ip != nil && ip.IsLoopback():
		return doctor.Passed(what, "on this machine")
	}
	return doctor.Warned(what, "password and hashed addresses go over the network as they are", "use TLS (deploy/nats/nats-server.conf), unless the network itself is private and encrypted")
}

// rights tries each subject. The server answers in order: a refusal is known when the answer to the ping behind it is here.
func (e *examiner) rights() doctor.Check {
	const what = "NATS: rights"
	try := func(subject string, do func() error) error {
		if err := do(); err != nil {
			return err
		}
		if err := e.nc.FlushTimeout(examineTimeout); err != nil {
			return err
		}
		if err := e.nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), strconv.Quote(subject)) {
			e.lacks = append(e.lacks, subject)
		}
		return nil
	}
	for _, subject := range needed(e.role) {
		msg := nats.NewMsg(subject)
		msg.Data = []byte("?")                         // no request and no acknowledgement of this form does anything
		msg.Header.Set("Nats-Expected-Stream", "none") // no stream takes it
		if err := try(subject, func() error { return e.nc.PublishMsg(msg) }); err != nil {
			return doctor.Failed(what, "they cannot be tried: "+err.Error(), mendConnection)
		}
	}
	for _, subject := range heard(e.role) {
		err := try(subject, func() error { _, err := e.nc.SubscribeSync(subject); return err }) // it ends with the connection
		if err != nil {
			return doctor.Failed(what, "they cannot be tried: "+err.Error(), mendConnection)
		}
	}
	return judgeRights(e.lacks)
}

// judgeRights: without some rights everything works, and less is known.
func judgeRights(lacks []string) doctor.Check {
	const what = "NATS: rights"
	must := slices.DeleteFunc(slices.Clone(lacks), func(s string) bool { return strings.HasPrefix(s, advisoryNak) || s == subjectInfo })
	switch {
	case len(must) > 0:
		return doctor.Failed(what, "the user lacks "+strings.Join(must, ", "), compareUsers)
	case len(lacks) > 0:
		return doctor.Warned(what, "the user has what it must have, and lacks "+strings.Join(lacks, ", "), compareUsers)
	}
	return doctor.Passed(what, "the user has what it needs")
}

// needed are the subjects that a role publishes on; what ends with doctor names nothing that is there.
func needed(role string) []string {
	if role == RoleWorker {
		return []string{
			message.SubjectOutcomes, message.SubjectDead + "doctor",
			"$JS.API.CONSUMER.INFO.PURCHASES.worker", "$JS.API.CONSUMER.MSG.NEXT.PURCHASES.worker", "$JS.ACK.PURCHASES.worker.doctor",
		}
	}
	list := []string{message.SubjectLive + "doctor", message.SubjectTest + "doctor", "$JS.API.CONSUMER.MSG.NEXT.OUTCOMES.recorder", "$JS.ACK.OUTCOMES.recorder.doctor", subjectInfo}
	for _, stream := range []string{message.StreamPurchases, message.StreamPurchasesDead, message.StreamOutcomes} {
		list = append(list, "$JS.API.STREAM.INFO."+stream)
	}
	return append(list, "$JS.API.CONSUMER.INFO.PURCHASES.worker", "$JS.API.CONSUMER.INFO.OUTCOMES.recorder")
}

// heard are those that it subscribes to.
func heard(role string) []string {
	if role == RoleWorker {
		return []string{"_INBOX_worker.doctor.*", advisoryNak + "PURCHASES.worker"}
	}
	return []string{"_INBOX_ingest.doctor.*", message.SubjectWorkers + "*"}
}

// fullness from which a stream is told of.
const (
	fairlyFull = 0.8
	nearlyFull = 0.95
)

func (e *examiner) stream(ctx context.Context, want jetstream.StreamConfig) (check doctor.Check, here bool) {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	what := "NATS: stream " + want.Name
	if e.silent("$JS.API.STREAM.INFO." + want.Name) {
		return doctor.Failed(what, unasked, compareUsers), true
	}
	stream, err := e.js.Stream(ctx, want.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return doctor.Warned(what, "is not there yet", provisionIt), false
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount), errors.Is(err, nats.ErrNoResponders):
		return doctor.Failed(what, "JetStream is off", "start nats-server with -js, or jetstream {} in its configuration, and enable it for the account"), true
	case err != nil:
		return doctor.Failed(what, "cannot be asked: "+err.Error(), compareUsers), true
	}
	info := stream.CachedInfo()
	return judgeStream(what, info.Config, want, info.State.Msgs, info.State.Bytes), true
}

func judgeStream(what string, is, want jetstream.StreamConfig, messages, bytes uint64) doctor.Check {
	differs := differing(is, want)
	found := fmt.Sprintf("%d messages, %d of %d MiB", messages, bytes>>20, is.MaxBytes>>20)
	full := 0.0
	if is.MaxBytes > 0 {
		full = float64(bytes) / float64(is.MaxBytes)
	}
	switch {
	case full >= nearlyFull:
		return doctor.Failed(what, found+": nearly full, then purchases wait on the ledger", "see why workers do not drain it, or raise NATS_MAX_BYTES")
	case len(differs) > 0:
		return doctor.Warned(what, found+"; not as it should be: "+strings.Join(differs, ", "), provisionIt)
	case full >= fairlyFull:
		return doctor.Warned(what, found+": fairly full", "see why workers do not drain it, or raise NATS_MAX_BYTES")
	}
	return doctor.Passed(what, "%s", found)
}

func (e *examiner) consumer(ctx context.Context, stream, durable string) doctor.Check {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	what := "NATS: consumer " + durable
	if e.silent("$JS.API.CONSUMER.INFO." + stream + "." + durable) {
		return doctor.Failed(what, unasked, compareUsers)
	}
	bound, err := e.js.Consumer(ctx, stream, durable)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrStreamNotFound):
		return doctor.Warned(what, "is not there yet", provisionIt)
	case err != nil:
		return doctor.Failed(what, "cannot be asked: "+err.Error(), compareUsers)
	}
	return judgeConsumer(what, bound.CachedInfo().Config, bound.CachedInfo().NumPending, bound.CachedInfo().NumAckPending)
}

func judgeConsumer(what string, is jetstream.ConsumerConfig, waiting uint64, taken int) doctor.Check {
	if !asWanted(is) {
		return doctor.Warned(what, "has other settings than it should", provisionIt)
	}
	return doctor.Passed(what, "%d messages wait, %d are being worked on or delayed", waiting, taken)
}

// silent says that a question would not be answered, for lack of the right to ask.
func (e *examiner) silent(subject string) bool { return slices.Contains(e.lacks, subject) }

// room says whether the streams that are missing will fit.
func (e *examiner) room(ctx context.Context, missing int64) doctor.Check {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	if e.silent(subjectInfo) {
		return doctor.Warned("NATS: disk", unasked, "let the user publish on $JS.API.INFO; keep NATS_MAX_BYTES and 2 GiB below the disk's size")
	}
	info, err := e.js.AccountInfo(ctx)
	if err != nil {
		return doctor.Warned("NATS: disk", "the server does not say how much room there is", "let the user publish on $JS.API.INFO; keep NATS_MAX_BYTES and 2 GiB below the disk's size")
	}
	return judgeRoom(info.Limits.MaxStore, info.Store, info.ReservedStore, missing)
}

func judgeRoom(limit int64, used, reserved uint64, missing int64) doctor.Check {
	const what, remedy = "NATS: disk", "lower NATS_MAX_BYTES (the two other streams take 1 GiB each), or raise the account's storage and max_file_store"
	found := fmt.Sprintf("%d MiB used, %d MiB reserved", used>>20, reserved>>20)
	if limit <= 0 {
		return doctor.Passed(what, "%s, the account has no limit of its own", found)
	}
	left := limit - int64(max(used, reserved)) //nolint:gosec // bytes on a disk
	found += fmt.Sprintf(" of %d MiB", limit>>20)
	switch {
	case missing > left:
		return doctor.Failed(what, found+fmt.Sprintf("; streams of %d MiB are still to be made", missing>>20), remedy)
	case float64(used) > nearlyFull*float64(limit):
		return doctor.Failed(what, found+": nearly full", remedy)
	}
	return doctor.Passed(what, "%s", found)
}
