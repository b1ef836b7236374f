PRAGMA application_id = 1330791240;
BEGIN TRANSACTION;
CREATE TABLE checkpoints (
	run_id VARCHAR(64) NOT NULL, 
	id VARCHAR(255) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (run_id, id)
);
CREATE TABLE deliveries (
	id VARCHAR(255) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE events (
	seq INTEGER NOT NULL, 
	run_id VARCHAR(64) NOT NULL, 
	id TEXT NOT NULL, 
	from_host BOOLEAN NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (seq)
);
CREATE TABLE leases (
	name VARCHAR(255) NOT NULL, 
	owner TEXT, 
	fence INTEGER NOT NULL, 
	expires_at VARCHAR(40) NOT NULL, 
	boot TEXT NOT NULL, 
	expires_uptime FLOAT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "leases" VALUES('run:run-1qtvtznq1gj9',NULL,1,'2026-11-25T22:50:41.578526+00:00','eedd9312-0171-4982-a16b-b8f68c8f33e8',3808.464255488);
INSERT INTO "leases" VALUES('run:run-1qtvtzses3cs',NULL,1,'2026-11-25T22:50:41.666492+00:00','eedd9312-0171-4982-a16b-b8f68c8f33e8',3808.55221654);
INSERT INTO "leases" VALUES('run:run-1qtvtzvab6yq',NULL,1,'2026-11-25T22:50:41.722505+00:00','eedd9312-0171-4982-a16b-b8f68c8f33e8',3808.608231298);
INSERT INTO "leases" VALUES('run:run-1qtvtzwp4dvs',NULL,1,'2026-11-25T22:50:41.754412+00:00','eedd9312-0171-4982-a16b-b8f68c8f33e8',3808.64013397);
INSERT INTO "leases" VALUES('run:run-1qtvtzxpp8wa',NULL,1,'2026-11-25T22:50:41.790407+00:00','eedd9312-0171-4982-a16b-b8f68c8f33e8',3808.676127991);
INSERT INTO "leases" VALUES('run:run-1qtvtzz20jx8',NULL,1,'2026-11-25T22:50:41.814435+00:00','eedd9312-0171-4982-a16b-b8f68c8f33e8',3808.700159537);
CREATE TABLE metrics (
	run_id VARCHAR(64) NOT NULL, 
	step INTEGER NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (run_id, step)
);
CREATE TABLE notifications (
	run_id VARCHAR(64) NOT NULL, 
	channel VARCHAR(255) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	owner TEXT NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	PRIMARY KEY (run_id, channel)
);
CREATE TABLE orchestrate_meta (
	"key" VARCHAR(64) NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "orchestrate_meta" VALUES('schema','2');
CREATE TABLE pauses (
	account VARCHAR(255) NOT NULL, 
	since VARCHAR(40) NOT NULL, 
	until VARCHAR(40) NOT NULL, 
	PRIMARY KEY (account)
);
CREATE TABLE records (
	id INTEGER NOT NULL, 
	run_id VARCHAR(64) NOT NULL, 
	kind VARCHAR(32) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE runs (
	id VARCHAR(64) NOT NULL, 
	ref VARCHAR(64) NOT NULL, 
	name VARCHAR(64), 
	provider VARCHAR(64) NOT NULL, 
	host TEXT NOT NULL, 
	sandbox BOOLEAN NOT NULL, 
	phase VARCHAR(32) NOT NULL, 
	status VARCHAR(32) NOT NULL, 
	job_id TEXT, 
	spec_hash VARCHAR(64) NOT NULL, 
	dataset_digest VARCHAR(64) NOT NULL, 
	created_at VARCHAR(40) NOT NULL, 
	updated_at VARCHAR(40) NOT NULL, 
	attempt INTEGER NOT NULL, 
	cancel_requested BOOLEAN NOT NULL, 
	closed BOOLEAN NOT NULL, 
	due_at VARCHAR(40) NOT NULL, 
	bill_usd TEXT, 
	committed_usd TEXT, 
	record TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (ref)
);
INSERT INTO "runs" VALUES('run-1qtvtznq1gj9','orc-1qtvtznq1gj9','ended','paper','file:///HOST',0,'submitted','succeeded','job-b229c12a9eaa','cbf4b196e68ff9183e6daaf6b7ba3a707427ef0f0ee9249736c7135721612fa5','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','2026-11-25T22:50:11.511545+00:00','2026-11-25T22:50:11.606066+00:00',1,0,1,'2026-11-25T22:50:11.610576+00:00',NULL,NULL,'{"id":"run-1qtvtznq1gj9","ref":"orc-1qtvtznq1gj9","provider":"paper","model":"m","spec":{"model":"m","train":"rows.jsonl","suffix":"ended"},"spec_hash":"cbf4b196e68ff9183e6daaf6b7ba3a707427ef0f0ee9249736c7135721612fa5","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///HOST","sandbox":false,"phase":"submitted","status":"succeeded","raw_status":"done","job_id":"job-b229c12a9eaa","job_kind":null,"created_at":"2026-11-25T22:50:11.511545Z","updated_at":"2026-11-25T22:50:11.606066Z","started_at":null,"finished_at":"2026-11-25T22:50:11.606066Z","tuned_model":"m:tuned","trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}');
INSERT INTO "runs" VALUES('run-1qtvtzses3cs','orc-1qtvtzses3cs','open','paper','file:///HOST',0,'submitted','submitting','job-f0cfb15ab4d0','fae9783d49194a77e410280e2a07c0242bbd77de6901f8cadafd4c648ea2709a','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','2026-11-25T22:50:11.630542+00:00','2026-11-25T22:50:11.671632+00:00',1,0,0,'2026-11-25T22:50:11.671978+00:00',NULL,NULL,'{"id":"run-1qtvtzses3cs","ref":"orc-1qtvtzses3cs","provider":"paper","model":"m","spec":{"model":"m","train":"rows.jsonl","suffix":"open"},"spec_hash":"fae9783d49194a77e410280e2a07c0242bbd77de6901f8cadafd4c648ea2709a","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///HOST","sandbox":false,"phase":"submitted","status":"submitting","raw_status":null,"job_id":"job-f0cfb15ab4d0","job_kind":null,"created_at":"2026-11-25T22:50:11.630542Z","updated_at":"2026-11-25T22:50:11.671632Z","started_at":null,"finished_at":null,"tuned_model":null,"trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}');
INSERT INTO "runs" VALUES('run-1qtvtzvab6yq','orc-1qtvtzvab6yq','lost','paper','file:///HOST',0,'outcome_unknown','submitting',NULL,'886441e25e5579baf3e21ff217af1d795617cf612fcf3c072475d3bae7304463','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','2026-11-25T22:50:11.690561+00:00','2026-11-25T22:50:11.726761+00:00',1,0,0,'2026-11-25T22:50:11.727254+00:00',NULL,NULL,'{"id":"run-1qtvtzvab6yq","ref":"orc-1qtvtzvab6yq","provider":"paper","model":"m","spec":{"model":"m","train":"rows.jsonl","suffix":"lost"},"spec_hash":"886441e25e5579baf3e21ff217af1d795617cf612fcf3c072475d3bae7304463","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///HOST","sandbox":false,"phase":"outcome_unknown","status":"submitting","raw_status":null,"job_id":null,"job_kind":null,"created_at":"2026-11-25T22:50:11.690561Z","updated_at":"2026-11-25T22:50:11.726761Z","started_at":null,"finished_at":null,"tuned_model":null,"trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}');
INSERT INTO "runs" VALUES('run-1qtvtzwp4dvs','orc-1qtvtzwp4dvs','unmade','paper','file:///HOST',0,'outcome_unknown','submitting',NULL,'376c8fa0d5583fd29caebb55f326d2aef9524b2958437ba4aa7d44413b2d20c9','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','2026-11-25T22:50:11.734524+00:00','2026-11-25T22:50:11.758591+00:00',1,0,0,'2026-11-25T22:50:11.759050+00:00',NULL,NULL,'{"id":"run-1qtvtzwp4dvs","ref":"orc-1qtvtzwp4dvs","provider":"paper","model":"m","spec":{"model":"m","train":"rows.jsonl","suffix":"unmade"},"spec_hash":"376c8fa0d5583fd29caebb55f326d2aef9524b2958437ba4aa7d44413b2d20c9","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///HOST","sandbox":false,"phase":"outcome_unknown","status":"submitting","raw_status":null,"job_id":null,"job_kind":null,"created_at":"2026-11-25T22:50:11.734524Z","updated_at":"2026-11-25T22:50:11.758591Z","started_at":null,"finished_at":null,"tuned_model":null,"trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}');
INSERT INTO "runs" VALUES('run-1qtvtzxpp8wa','orc-1qtvtzxpp8wa','refused','paper','file:///HOST',0,'refused','failed',NULL,'c1fa476d260e6fb3caaa1f21f5503820d445eec91612a66df13bed2e8e98f6c2','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','2026-11-25T22:50:11.766525+00:00','2026-11-25T22:50:11.798053+00:00',1,0,1,'2026-11-25T22:50:11.798751+00:00',NULL,NULL,'{"id":"run-1qtvtzxpp8wa","ref":"orc-1qtvtzxpp8wa","provider":"paper","model":"m","spec":{"model":"m","train":"rows.jsonl","suffix":"refused"},"spec_hash":"c1fa476d260e6fb3caaa1f21f5503820d445eec91612a66df13bed2e8e98f6c2","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///HOST","sandbox":false,"phase":"refused","status":"failed","raw_status":null,"job_id":null,"job_kind":null,"created_at":"2026-11-25T22:50:11.766525Z","updated_at":"2026-11-25T22:50:11.798053Z","started_at":null,"finished_at":"2026-11-25T22:50:11.798053Z","tuned_model":null,"trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":{"message":"paper (400 bad): no such model","code":"bad","param":null},"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}');
INSERT INTO "runs" VALUES('run-1qtvtzz20jx8','orc-1qtvtzz20jx8','uploaded','paper','file:///HOST',0,'uploaded','submitting',NULL,'586548b8721935829c8b5f83d2bcb50640d704ecc2a5cba02b3dc447c05d6218','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','2026-11-25T22:50:11.810578+00:00','2026-11-25T22:50:11.822399+00:00',0,0,0,'2026-11-25T22:50:11.823006+00:00',NULL,NULL,'{"id":"run-1qtvtzz20jx8","ref":"orc-1qtvtzz20jx8","provider":"paper","model":"m","spec":{"model":"m","train":"rows.jsonl","suffix":"uploaded"},"spec_hash":"586548b8721935829c8b5f83d2bcb50640d704ecc2a5cba02b3dc447c05d6218","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///HOST","sandbox":false,"phase":"uploaded","status":"submitting","raw_status":null,"job_id":null,"job_kind":null,"created_at":"2026-11-25T22:50:11.810578Z","updated_at":"2026-11-25T22:50:11.822399Z","started_at":null,"finished_at":null,"tuned_model":null,"trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}');
INSERT INTO "runs" VALUES('run-1qtvtzztph4x','orc-1qtvtzztph4x','intent','paper','file:///HOST',0,'intent','submitting',NULL,'281263a8af4d1a9a3195324d710a4e9deb68359a363617947ce02e3e2674ede2','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','2026-11-25T22:50:11.834570+00:00','2026-11-25T22:50:11.834570+00:00',0,0,0,'2026-11-25T22:50:11.834938+00:00',NULL,NULL,'{"id":"run-1qtvtzztph4x","ref":"orc-1qtvtzztph4x","provider":"paper","model":"m","spec":{"model":"m","train":"rows.jsonl","suffix":"intent"},"spec_hash":"281263a8af4d1a9a3195324d710a4e9deb68359a363617947ce02e3e2674ede2","dataset_digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","host":"file:///HOST","sandbox":false,"phase":"intent","status":"submitting","raw_status":null,"job_id":null,"job_kind":null,"created_at":"2026-11-25T22:50:11.834570Z","updated_at":"2026-11-25T22:50:11.834570Z","started_at":null,"finished_at":null,"tuned_model":null,"trained_tokens":null,"step":null,"total_steps":null,"epoch":null,"percent":null,"early_stopped":false,"error":null,"quote":null,"bill":null,"max_cost_usd":null,"tags":{}}');
CREATE TABLE stamps (
	run_id VARCHAR(64) NOT NULL, 
	attempt INTEGER NOT NULL, 
	boot VARCHAR(255) NOT NULL, 
	uptime FLOAT NOT NULL, 
	PRIMARY KEY (run_id, attempt, boot)
);
INSERT INTO "stamps" VALUES('run-1qtvtznq1gj9',1,'eedd9312-0171-4982-a16b-b8f68c8f33e8',3778.453430367);
INSERT INTO "stamps" VALUES('run-1qtvtzses3cs',1,'eedd9312-0171-4982-a16b-b8f68c8f33e8',3778.541461631);
INSERT INTO "stamps" VALUES('run-1qtvtzvab6yq',1,'eedd9312-0171-4982-a16b-b8f68c8f33e8',3778.592373392);
INSERT INTO "stamps" VALUES('run-1qtvtzwp4dvs',1,'eedd9312-0171-4982-a16b-b8f68c8f33e8',3778.634389145);
INSERT INTO "stamps" VALUES('run-1qtvtzxpp8wa',1,'eedd9312-0171-4982-a16b-b8f68c8f33e8',3778.673182892);
CREATE TABLE transitions (
	id INTEGER NOT NULL, 
	run_id VARCHAR(64) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	phase VARCHAR(32) NOT NULL, 
	status VARCHAR(32) NOT NULL, 
	raw_status TEXT, 
	attempt INTEGER NOT NULL, 
	actor TEXT NOT NULL, 
	note TEXT, 
	PRIMARY KEY (id)
);
INSERT INTO "transitions" VALUES(1,'run-1qtvtznq1gj9','2026-11-25T22:50:11.511545+00:00','intent','submitting',NULL,0,'vm:157248:ded6bd','intent');
INSERT INTO "transitions" VALUES(2,'run-1qtvtznq1gj9','2026-11-25T22:50:11.554493+00:00','uploaded','submitting',NULL,0,'vm:157248:ded6bd',NULL);
INSERT INTO "transitions" VALUES(3,'run-1qtvtznq1gj9','2026-11-25T22:50:11.566512+00:00','submitting','submitting',NULL,1,'vm:157248:ded6bd',NULL);
INSERT INTO "transitions" VALUES(4,'run-1qtvtznq1gj9','2026-11-25T22:50:11.584154+00:00','submitted','submitting',NULL,1,'vm:157248:ded6bd',NULL);
INSERT INTO "transitions" VALUES(5,'run-1qtvtznq1gj9','2026-11-25T22:50:11.606066+00:00','submitted','succeeded','done',1,'vm:157248:ded6bd',NULL);
INSERT INTO "transitions" VALUES(6,'run-1qtvtzses3cs','2026-11-25T22:50:11.630542+00:00','intent','submitting',NULL,0,'vm:157248:ded6bd','intent');
INSERT INTO "transitions" VALUES(7,'run-1qtvtzses3cs','2026-11-25T22:50:11.644096+00:00','uploaded','submitting',NULL,0,'vm:157248:ded6bd',NULL);
INSERT INTO "transitions" VALUES(8,'run-1qtvtzses3cs','2026-11-25T22:50:11.654715+00:00','submitting','submitting',NULL,1,'vm:157248:ded6bd',NULL);
INSERT INTO "transitions" VALUES(9,'run-1qtvtzses3cs','2026-11-25T22:50:11.671632+00:00','submitted','submitting',NULL,1,'vm:157248:ded6bd',NULL);
INSERT INTO "transitions" VALUES(10,'run-1qtvtzvab6yq','2026-11-25T22:50:11.690561+00:00','intent','submitting',NULL,0,'vm:157248:ded6bd','intent');
INSERT INTO "transitions" VALUES(11,'run-1qtvtzvab6yq','2026-11-25T22:50:11.703701+00:00','uploaded','submitting',NULL,0,'vm:157248:ded6bd',NULL);
INSERT INTO "transitions" VALUES(12,'run-1qtvtzvab6yq','2026-11-25T22:50:11.705622+00:00','submitting','submitting',NULL,1,'vm:157248:ded6bd',NULL);
INSERT INTO "transitions" VALUES(13,'run-1qtvtzvab6yq','2026-11-25T22:50:11.726761+00:00','outcome_unknown','submitting',NULL,1,'vm:157248:ded6bd','paper: the answer to the create request was lost (connection reset); the job may exist under ref orc-1qtvtzvab6yq');
INSERT INTO "transitions" VALUES(14,'run-1qtvtzwp4dvs','2026-11-25T22:50:11.734524+00:00','intent','submitting',NULL,0,'vm:157248:ded6bd','intent');
INSERT INTO "transitions" VALUES(15,'run-1qtvtzwp4dvs','2026-11-25T22:50:11.743898+00:00','uploaded','submitting',NULL,0,'vm:157248:ded6bd',NULL);
INSERT INTO "transitions" VALUES(16,'run-1qtvtzwp4dvs','2026-11-25T22:50:11.747963+00:00','submitting','submitting',NULL,1,'vm:157248:ded6bd',NULL);
INSERT INTO "transitions" VALUES(17,'run-1qtvtzwp4dvs','2026-11-25T22:50:11.758591+00:00','outcome_unknown','submitting',NULL,1,'vm:157248:ded6bd','paper: the answer to the create request was lost (reset); the job may exist under ref r');
INSERT INTO "transitions" VALUES(18,'run-1qtvtzxpp8wa','2026-11-25T22:50:11.766525+00:00','intent','submitting',NULL,0,'vm:157248:ded6bd','intent');
INSERT INTO "transitions" VALUES(19,'run-1qtvtzxpp8wa','2026-11-25T22:50:11.775657+00:00','uploaded','submitting',NULL,0,'vm:157248:ded6bd',NULL);
INSERT INTO "transitions" VALUES(20,'run-1qtvtzxpp8wa','2026-11-25T22:50:11.786484+00:00','submitting','submitting',NULL,1,'vm:157248:ded6bd',NULL);
INSERT INTO "transitions" VALUES(21,'run-1qtvtzxpp8wa','2026-11-25T22:50:11.798053+00:00','refused','failed',NULL,1,'vm:157248:ded6bd',NULL);
INSERT INTO "transitions" VALUES(22,'run-1qtvtzz20jx8','2026-11-25T22:50:11.810578+00:00','intent','submitting',NULL,0,'vm:157248:ded6bd','intent');
INSERT INTO "transitions" VALUES(23,'run-1qtvtzz20jx8','2026-11-25T22:50:11.822399+00:00','uploaded','submitting',NULL,0,'vm:157248:ded6bd',NULL);
INSERT INTO "transitions" VALUES(24,'run-1qtvtzztph4x','2026-11-25T22:50:11.834570+00:00','intent','submitting',NULL,0,'vm:157248:ded6bd','intent');
CREATE TABLE uploads (
	provider VARCHAR(64) NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (provider, host, digest)
);
INSERT INTO "uploads" VALUES('paper','file:///HOST','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','2026-11-25T22:50:11.819879+00:00','{"provider":"paper","digest":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","train_id":"file-dddddddd","validation_id":null,"details":{}}');
CREATE INDEX runs_by_job ON runs (provider, job_id);
CREATE INDEX runs_by_age ON runs (created_at);
CREATE INDEX runs_open ON runs (closed, provider);
CREATE INDEX ix_transitions_run_id ON transitions (run_id);
CREATE UNIQUE INDEX events_once ON events (run_id, id);
CREATE INDEX ix_records_run_id ON records (run_id);
COMMIT;
