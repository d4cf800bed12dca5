package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"purchase-relay/internal/message"
)

// The roles of the binaries' connections, each a user in NATS.
const (
	RoleIngest    = "ingest"
	RoleWorker    = "worker"
	RoleProvision = "provision" // only creates and changes streams and consumers
)

const (
	probeTimeout = 3 * time.Second // of one request
	subjectInfo  = "$JS.API.INFO"
)

// Why a connection or a request of a Probe fails. Requests without permission end with ErrNotPermitted.
var (
	ErrCredentials  = errors.New("refuses the credentials")
	ErrTLS          = errors.New("does not agree on TLS")
	ErrMissing      = errors.New("is not there yet")
	ErrJetStreamOff = errors.New("JetStream is off")
)

// Probe is one connection for a self-check, without reconnects. It reads facts about the server, its user's
// permissions, the streams and the consumers, judges none of them and changes nothing.
type Probe struct {
	nc    *nats.Conn
	js    jetstream.JetStream
	role  string
	lacks []string // subjects that the user may not use, once Lacks has tried them
}

// OpenProbe connects as a role. The error wraps ErrCredentials, ErrTLS, or says that nobody answers.
func OpenProbe(c Config, role string) (*Probe, error) {
	options := []nats.Option{
		nats.Name("purchase-relay doctor"), nats.CustomInboxPrefix("_INBOX_" + role),
		nats.Timeout(probeTimeout), nats.NoReconnect(),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // without one nats.go prints
	}
	nc, err := nats.Connect(c.NATSURL.Reveal(), append(options, c.credentials()...)...)
	switch {
	case isRefusal(err):
		return nil, ErrCredentials
	case isTLS(err):
		return nil, fmt.Errorf("%w: %w", ErrTLS, err)
	case err != nil:
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, err
	}
	return &Probe{nc: nc, js: js, role: role}, nil
}

// Close ends the connection.
func (p *Probe) Close() { p.nc.Close() }

// Version returns the server's version.
func (p *Probe) Version() string { return p.nc.ConnectedServerVersion() }

// Line returns the server's address and whether the connection is encrypted.
func (p *Probe) Line() (server string, encrypted bool) {
	server = p.nc.ConnectedUrl()
	return server, p.nc.TLSRequired() || strings.HasPrefix(server, "tls:")
}

// Lacks tries every subject that the role uses and lists those that its user may not use. Without the
// optional ones everything works, and less is known. Requests for what Lacks has listed end with
// ErrNotPermitted.
func (p *Probe) Lacks() (required, optional []string, err error) {
	// The server answers in order: a refusal has arrived when the answer to the ping behind it has.
	try := func(subject string, do func() error) error {
		if err := do(); err != nil {
			return err
		}
		if err := p.nc.FlushTimeout(probeTimeout); err != nil {
			return err
		}
		if err := p.nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) &&
			strings.Contains(err.Error(), strconv.Quote(subject)) {
			p.lacks = append(p.lacks, subject)
		}
		return nil
	}
	for _, subject := range publishes(p.role) {
		msg := nats.NewMsg(subject)
		msg.Data = []byte("?")                         // no request and no acknowledgement has this form
		msg.Header.Set("Nats-Expected-Stream", "none") // so that no stream stores it
		if err := try(subject, func() error { return p.nc.PublishMsg(msg) }); err != nil {
			return nil, nil, err
		}
	}
	for _, subject := range subscribes(p.role) {
		subscribe := func() error { _, err := p.nc.SubscribeSync(subject); return err } // ends with the connection
		if err := try(subject, subscribe); err != nil {
			return nil, nil, err
		}
	}
	for _, subject := range p.lacks {
		if strings.HasPrefix(subject, advisoryNak) || subject == subjectInfo {
			optional = append(optional, subject)
		} else {
			required = append(required, subject)
		}
	}
	return required, optional, nil
}

// publishes are the subjects that a role publishes on. Names that end with doctor belong to no purchase.
func publishes(role string) []string {
	if role == RoleWorker {
		return []string{
			message.SubjectOutcomes, message.SubjectDead + "doctor",
			"$JS.API.CONSUMER.INFO.PURCHASES.worker", "$JS.API.CONSUMER.MSG.NEXT.PURCHASES.worker",
			"$JS.ACK.PURCHASES.worker.doctor",
		}
	}
	list := []string{
		message.SubjectLive + "doctor", message.SubjectTest + "doctor",
		"$JS.API.CONSUMER.MSG.NEXT.OUTCOMES.recorder", "$JS.ACK.OUTCOMES.recorder.doctor", subjectInfo,
	}
	streams := []string{message.StreamPurchases, message.StreamPurchasesDead, message.StreamOutcomes}
	for _, stream := range streams {
		list = append(list, "$JS.API.STREAM.INFO."+stream)
	}
	return append(list, "$JS.API.CONSUMER.INFO.PURCHASES.worker", "$JS.API.CONSUMER.INFO.OUTCOMES.recorder")
}

// subscribes are those that it subscribes to.
func subscribes(role string) []string {
	if role == RoleWorker {
		return []string{"_INBOX_worker.doctor.*", advisoryNak + "PURCHASES.worker"}
	}
	return []string{"_INBOX_ingest.doctor.*", message.SubjectWorkers + "*"}
}

// StreamState is the state of one stream.
type StreamState struct {
	Name            string
	Err             error // ErrMissing, ErrJetStreamOff, ErrNotPermitted or another; the rest is unknown then
	Wanted          int64 // bytes that the product reserves for it
	Messages, Bytes uint64
	MaxBytes        int64
	Differs         []string // settings that are not as the product wants them
}

// Streams reads the state of each of the product's streams.
func (p *Probe) Streams(ctx context.Context, s StreamConfig) (list []StreamState) {
	for _, want := range streams(s) {
		state := StreamState{Name: want.Name, Wanted: want.MaxBytes}
		state.Err = p.ask(ctx, "$JS.API.STREAM.INFO."+want.Name, func(ctx context.Context) error {
			stream, err := p.js.Stream(ctx, want.Name)
			if err == nil {
				info := stream.CachedInfo()
				state.Messages, state.Bytes, state.MaxBytes = info.State.Msgs, info.State.Bytes, info.Config.MaxBytes
				state.Differs = differing(info.Config, want)
			}
			return err
		})
		list = append(list, state)
	}
	return list
}

// ConsumerState is the state of one consumer.
type ConsumerState struct {
	Name       string
	Err        error // as a StreamState's
	Waiting    uint64
	Taken      int           // messages being worked on, or delayed
	Differs    bool          // its settings are not as the product wants them
	ClockAhead time.Duration // the server's clock before this machine's
	ClockKnown bool
}

// Consumers reads the state of the consumers that the role looks at: a worker's is its own alone.
func (p *Probe) Consumers(ctx context.Context) (list []ConsumerState) {
	for _, d := range durables() {
		stream, durable := d[0], d[1]
		if p.role == RoleWorker && durable != message.ConsumerWorker {
			continue
		}
		state := ConsumerState{Name: durable}
		state.Err = p.ask(ctx, "$JS.API.CONSUMER.INFO."+stream+"."+durable, func(ctx context.Context) error {
			before := time.Now()
			bound, err := p.js.Consumer(ctx, stream, durable)
			if err == nil {
				info := bound.CachedInfo()
				state.Waiting, state.Taken, state.Differs = info.NumPending, info.NumAckPending, !asWanted(info.Config)
				state.ClockAhead, state.ClockKnown = offsetBetween(before, time.Now(), info.TimeStamp)
			}
			return err
		})
		list = append(list, state)
	}
	return list
}

// Storage is what an account may store, in bytes.
type Storage struct {
	Limit          int64 // 0 or less: none of its own
	Used, Reserved uint64
}

// Storage reads what the account may store.
func (p *Probe) Storage(ctx context.Context) (s Storage, err error) {
	err = p.ask(ctx, subjectInfo, func(ctx context.Context) error {
		info, err := p.js.AccountInfo(ctx)
		if err == nil {
			s = Storage{info.Limits.MaxStore, info.Store, info.ReservedStore}
		}
		return err
	})
	return s, err
}

// ask runs a request unless its subject is known to be refused: nobody would answer it.
func (p *Probe) ask(ctx context.Context, subject string, request func(ctx context.Context) error) error {
	if slices.Contains(p.lacks, subject) {
		return ErrNotPermitted
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err := request(ctx)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrConsumerNotFound):
		return ErrMissing
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, nats.ErrNoResponders),
		errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return ErrJetStreamOff
	}
	return err
}
