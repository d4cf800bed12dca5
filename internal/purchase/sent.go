package purchase

// Sent describes the event that TikTok accepted, as the worker reports it. It may differ from the envelope:
// the worker omits a value in a currency that TikTok does not support, and fills in a default page.
type Sent struct {
	Keys  int16  `json:"keys"`            // see MatchKeys.Mask
	Minor *int64 `json:"minor,omitempty"` // value in the currency's smallest unit; nil: none
	Page  string `json:"page,omitempty"`  // the worker's default page; "": not used
}

// Masked returns the keys without the kinds that mask lacks. Keys that Mask does not count remain.
func (k MatchKeys) Masked(mask int16) MatchKeys {
	for bit, key := range [MatchKeyKinds]*string{
		&k.Email, &k.Phone, &k.TTCLID, &k.TTP, &k.IP, &k.UserAgent, &k.PageURL, &k.FirstName, &k.Zip,
	} {
		if mask>>bit&1 == 0 {
			*key = ""
		}
	}
	if mask>>(MatchKeyKinds-1)&1 == 0 { // the address
		k.City = ""
	}
	return k
}
