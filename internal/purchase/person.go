package purchase

// Person is what the ledger holds of one buyer, by the ids that it keeps.
type Person struct {
	Profiles      []string // of the live and of the test mode
	Customers     []string // Stripe's ids of the customer
	Subscriptions []string
	Held          []Holding
	Others        []string // sessions and invoices of trials that the ledger holds no purchase of
}

// Holding is one of a person's purchases.
type Holding struct {
	ID       string
	Livemode bool
	Sent     bool // TikTok has accepted it
}

// Sent lists the ids under which TikTok holds an event of this person.
func (p *Person) Sent() (ids []string) {
	for _, h := range p.Held {
		if h.Sent {
			ids = append(ids, h.ID)
		}
	}
	return ids
}

// Queued lists the ids under which the queue may hold a message about this person.
func (p *Person) Queued() []string {
	ids := make([]string, 0, len(p.Held)+len(p.Others))
	for _, h := range p.Held {
		ids = append(ids, h.ID)
	}
	return append(ids, p.Others...)
}
