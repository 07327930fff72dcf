/// <reference path="./job-state.d.ts" />
/**
 * Types of job-state.mjs, the ES module: those of job-state.d.ts, which describes them.
 */
export default JobState;
export import follow = JobState.follow;
export import startPolling = JobState.startPolling;
export import PollingOptions = JobState.PollingOptions;
export import JobAddress = JobState.JobAddress;
export import Poller = JobState.Poller;
export import Transport = JobState.Transport;
export import Outcome = JobState.Outcome;
export import Failure = JobState.Failure;
export import Reason = JobState.Reason;
export import askToNotify = JobState.askToNotify;
export import setLabels = JobState.setLabels;
export import Labels = JobState.Labels;
export import Label = JobState.Label;
export import State = JobState.State;
export import JobStateElement = JobState.JobStateElement;
export import ElementAttributes = JobState.ElementAttributes;
export import LabelAttributes = JobState.LabelAttributes;
export import ElementEvents = JobState.ElementEvents;
export import Part = JobState.Part;
export import CustomProperty = JobState.CustomProperty;
export import JobData = JobState.JobData;
export import AnyMetrics = JobState.AnyMetrics;
export import Job = JobState.Job;
export import MemberCounts = JobState.MemberCounts;
export import Phase = JobState.Phase;
export import Progress = JobState.Progress;
export import Counts = JobState.Counts;
export import Inspection = JobState.Inspection;
export import Whereabouts = JobState.Whereabouts;
export import LogLine = JobState.LogLine;
export import JobError = JobState.JobError;
export import BulkResult = JobState.BulkResult;
